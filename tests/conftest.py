"""What every test gets: the markers' conditions, a count of descriptors, a place for sockets."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from fdbox.linux import lasting

if TYPE_CHECKING:
    from collections.abc import Iterator

# Images must outlive the kernel, and newer systems have /tmp in memory.
if lasting.in_memory(Path(tempfile.gettempdir())):
    os.environ["TMPDIR"] = tempfile.tempdir = "/var/tmp"

# Where daemons that tests start write images: not to where the machine's own would.
os.environ["STATE_DIRECTORY"] = tempfile.mkdtemp(prefix="fdbox-images-")
atexit.register(shutil.rmtree, os.environ["STATE_DIRECTORY"], ignore_errors=True)

VM_TIMEOUT = 3600  # seconds: the first test that needs the kernel also builds it
NEEDS_ROOT = ("root", "vm")

# Files that tools of the test run open in the middle of a test and keep.
TOOLS_FILES = (".coverage", ".hypothesis")

# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("fdbox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fdbox")


def _required() -> set[str]:
    return {name for name in os.environ.get("FDBOX_REQUIRE", "").split(",") if name}


def pytest_configure(config: pytest.Config) -> None:
    if unknown := _required() - set(NEEDS_ROOT):
        raise pytest.UsageError(f"FDBOX_REQUIRE takes root and vm, not {', '.join(unknown)}")


def pytest_itemcollected(item: pytest.Item) -> None:
    # Not when all are collected: xdist looks at the groups then, and before us.
    if item.get_closest_marker("vm") is not None:
        item.add_marker(pytest.mark.xdist_group("vm"))  # there is one machine at a time
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(VM_TIMEOUT))


def pytest_runtest_setup(item: pytest.Item) -> None:
    marked = [name for name in NEEDS_ROOT if item.get_closest_marker(name) is not None]
    if not marked or os.geteuid() == 0:
        return
    if wanted := _required().intersection(marked):
        pytest.fail(f"not root, and FDBOX_REQUIRE has {', '.join(wanted)}", pytrace=False)
    pytest.skip("needs to be root")


def _open_descriptors() -> set[tuple[int, str]]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # the one that listed the directory
            continue
        if not any(name in target for name in TOOLS_FILES):
            found.add((int(entry.name), target))
    return found


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor open."""
    before = _open_descriptors()
    yield
    gc.collect()
    end = time.monotonic() + 2  # what others have opened is closed by threads
    while (leaked := _open_descriptors() - before) and time.monotonic() < end:
        time.sleep(0.01)
    assert not leaked, f"left open: {sorted(leaked)}"


@pytest.fixture
def daemon_config() -> Path | None:
    """Return the configuration of `daemon_process`: the defaults, unless a test file has its own fixture."""
    return None


@pytest.fixture
def daemon_process(
    socket_path: Path, daemon_config: Path | None
) -> Iterator[subprocess.Popen[str]]:
    """Run `fdbox serve` at `socket_path` until the end of the test, which it must survive."""
    log = socket_path.with_name("log")
    command = [sys.executable, "-m", "fdbox", "serve", "--socket", str(socket_path)]
    if daemon_config is not None:
        command += ["--config", str(daemon_config)]
    with log.open("w") as out, subprocess.Popen(command, stderr=out, text=True) as process:
        end = time.monotonic() + 20
        while not socket_path.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
        yield process
        assert process.poll() is None, log.read_text()
        process.terminate()
        assert process.wait(20) == 0, log.read_text()


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Return a path short enough for a Unix socket (pytest's own directories may not be)."""
    with tempfile.TemporaryDirectory(prefix="fdbox") as directory:
        yield Path(directory) / "io.fdbox"
