"""What `fdbox doctor` says on real setups of this machine; tests/vm/test_doctor.py has those that need another kernel.

With `-s` each prints its row of the table: setup, expected, said.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import fdbox
from fdbox.linux import memfd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = [pytest.mark.root, pytest.mark.slow]

NOBODY, NAMELESS = "65534", "4711"
FDBOX = [sys.executable, "-m", "fdbox"]
AS = [sys.executable, "-m", "tests.service.as_user"]
HOMELESS = {"HOME": "", "XDG_CONFIG_HOME": "", "XDG_STATE_HOME": "", "XDG_RUNTIME_DIR": ""}
NO_CAPABILITIES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
#: what a shell does in a mount namespace of its own, before it becomes the doctor
NO_PROC = 'mount -t tmpfs none /proc; exec "$@"'
OVERLAY = (
    'mkdir -p "$D"/lower "$D"/top; {upper} mkdir "$D"/up/u "$D"/up/w; '
    'mount -t overlay -o lowerdir="$D"/lower,upperdir="$D"/up/u,workdir="$D"/up/w none "$D"/top; {then} exec "$@"'
)


@dataclass(frozen=True)
class Setup:
    """A setup, and what is so there: levels by check, and whether nothing would cross ("ways": [])."""

    expected: Mapping[str, object]
    wrapper: list[str] = field(default_factory=list)
    #: run in a mount namespace of its own, with "$D" an empty folder
    script: str = ""
    program: list[str] = field(default_factory=lambda: FDBOX)
    environment: Mapping[str, str] = field(default_factory=dict)
    configuration: str | None = None


def kernel_has_kexec_file() -> bool:
    """Ask the kernel itself: without the system call it says ENOSYS, with it that -1 is no descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(320, -1, -1, 0, None, 0) == -1  # kexec_file_load on x86_64
    return ctypes.get_errno() != errno.ENOSYS


NOTHING: Mapping[str, object] = {"ways": []}
MEMORY = 'mkdir "$D"/up; mount -t tmpfs none "$D"/up;'
SETUPS = {
    "this machine": Setup(
        {
            "proc": "ok",
            "namespace": "ok",
            "capabilities": "ok",
            "configuration": "ok",
            "kexec-file": "ok" if kernel_has_kexec_file() else "obstacle",
            "live-update": "ok" if Path("/dev/liveupdate").exists() else "obstacle",
            "kcmp": "ok",
            "daemon": "warning",
        }
    ),
    "a container": Setup(
        {**NOTHING, "namespace": "obstacle", "capabilities": "ok"},
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc"],
    ),
    "a rootless container": Setup(
        {**NOTHING, "namespace": "obstacle", "capabilities": "ok"},
        ["unshare", "--user", "--map-root-user"],
    ),
    "root without capabilities": Setup(
        {**NOTHING, "namespace": "ok", "capabilities": "obstacle"}, NO_CAPABILITIES
    ),
    "root in another's container, without capabilities": Setup(
        {**NOTHING, "namespace": "obstacle", "capabilities": "obstacle"},
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", *NO_CAPABILITIES],
    ),
    "user nobody": Setup(
        {**NOTHING, "capabilities": "obstacle", "configuration": "ok", "namespace": "ok"},
        program=[*AS, NOBODY],
        environment={**HOMELESS, "HOME": "/nonexistent"},
    ),
    "user nobody, with root's home": Setup(
        {**NOTHING, "capabilities": "obstacle", "images": "obstacle"},
        program=[*AS, NOBODY],
        environment={**HOMELESS, "HOME": "/root", "XDG_CONFIG_HOME": "/nonexistent"},
    ),
    "a user without a name": Setup(
        {**NOTHING, "configuration": "obstacle", "images": "obstacle"},
        program=[*AS, NAMELESS],
        environment=HOMELESS,
    ),
    "no /proc": Setup({**NOTHING, "proc": "obstacle", "capabilities": "unknown"}, script=NO_PROC),
    "a wrong configuration": Setup(
        {**NOTHING, "configuration": "obstacle"}, configuration="[image]\nfolder = '/x'\n"
    ),
    "images in memory": Setup(
        {"images": "obstacle", "image-room": "ok"},
        configuration="[image]\ndirectory = '/dev/shm/fdbox-doctor'\n",
    ),
    "images in an overlay in memory": Setup(
        {"images": "obstacle"}, script=OVERLAY.format(upper=MEMORY, then="")
    ),
    "images in an overlay that hides what it is": Setup(
        {"images": "unknown"},
        script=OVERLAY.format(upper=MEMORY, then='umount -l "$D"/up; rm -r "$D"/up;'),
    ),
    "images in an overlay on a disk": Setup(
        {"images": "ok"}, script=OVERLAY.format(upper='mkdir "$D"/up;', then="")
    ),
}


def ask(setup: Setup, folder: Path, socket: Path | None = None) -> dict[str, object]:
    """Return what the doctor says: levels by check, and "ways"."""
    said = hear(setup, folder, socket)
    return {"ways": said["ways"], **{one["check"]: one["level"] for one in said["findings"]}}


def hear(setup: Setup, folder: Path, socket: Path | None = None) -> dict[str, Any]:
    """Return the doctor's whole document."""
    words = ["doctor", "--json", *(["--socket", str(socket)] if socket else [])]
    text = setup.configuration
    if "/top" in setup.script:
        text = f"[image]\ndirectory = '{folder}/top/images'\n"
    if text is not None:
        (folder / "config.toml").write_text(text)
        words += ["--config", str(folder / "config.toml")]
    command = [*setup.wrapper, *setup.program, *words]
    if setup.script:
        command = ["unshare", "--mount", "sh", "-ec", setup.script, "sh", *command]
    environment = {**os.environ, **setup.environment, "D": str(folder)}
    done = subprocess.run(
        command,
        env={name: value for name, value in environment.items() if value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if said["ways"] else 1)
    return said


def compare(name: str, expected: Mapping[str, object], said: Mapping[str, object]) -> None:
    got = {what: said[what] for what in expected}
    print(f"| {name} | {dict(expected)} | {got} |")
    assert got == dict(expected)


@pytest.fixture
def folder(socket_path: Path) -> Path:
    """Return a folder that anybody may look into."""
    socket_path.parent.chmod(0o755)
    return socket_path.parent


@pytest.mark.parametrize("name", list(SETUPS))
def test_the_doctor_is_right(name: str, folder: Path) -> None:
    compare(name, SETUPS[name].expected, ask(SETUPS[name], folder))


# --- a daemon that runs ----------------------------------------------------------------------------------------------


@pytest.fixture
def limited(folder: Path) -> Iterator[Path]:
    """Return the socket of a daemon that may not start a kernel, and may have 5,000 descriptors."""
    path = folder / "limited"
    command = ["setpriv", "--bounding-set=-sys_boot", "prlimit", "--nofile=5000:5000"]
    with subprocess.Popen(
        [*command, *FDBOX, "serve", "--socket", str(path)], stderr=subprocess.DEVNULL
    ) as process:
        try:
            for _ in range(2000):
                if path.exists():
                    break
                assert process.poll() is None
                subprocess.run(["sleep", "0.01"], check=True)
            yield path
        finally:
            process.terminate()


def test_a_daemon_of_root_asked_by_nobody(
    daemon_process: subprocess.Popen[str], folder: Path, socket_path: Path
) -> None:
    expected = {"capabilities": "ok", "daemon": "ok", "images": "unknown", "image-room": "unknown"}
    setup = Setup(expected, program=[*AS, NOBODY], environment={**HOMELESS, "HOME": "/nonexistent"})
    compare("a daemon of root, asked by nobody", expected, ask(setup, folder, socket_path))


@pytest.mark.parametrize("text", [None, "[image]\nfolder = '/x'\n"])
def test_the_folder_of_images_is_the_daemons_own(
    daemon_process: subprocess.Popen[str], folder: Path, socket_path: Path, text: str | None
) -> None:
    own = os.environ["STATE_DIRECTORY"]
    elsewhere = {"STATE_DIRECTORY": "/dev/shm/fdbox-doctor"}  # which would be an obstacle
    said = hear(Setup({}, environment=elsewhere, configuration=text), folder, socket_path)
    found = {one["check"]: one for one in said["findings"]}
    assert found["images"]["says"] == f"images can be written to {own}"
    assert found["configuration"]["level"] == ("ok" if text is None else "warning")


def test_memory_is_counted_once_and_without_its_holes(
    daemon_process: subprocess.Popen[str], folder: Path, socket_path: Path
) -> None:
    with fdbox.connect(socket_path) as client, memfd.create("sparse", 200 << 30) as memory:
        os.pwrite(memory.fileno(), b"x", 100 << 30)
        client.box("sparse").put_many({"one": memory, "two": memory})
    expected = {"image-room": "ok", "images": "ok", "scattered": "ok"}
    compare("a memory of holes, twice", expected, ask(Setup(expected), folder, socket_path))


def test_a_daemon_asked_from_a_container_in_which_it_is_not_seen(
    daemon_process: subprocess.Popen[str], folder: Path, socket_path: Path
) -> None:
    expected = {"namespace": "unknown", "capabilities": "unknown", "descriptors": "unknown"}
    setup = Setup(expected, ["unshare", "--mount", "--pid", "--fork", "--mount-proc"])
    compare("a daemon, asked from a container", expected, ask(setup, folder, socket_path))


def test_a_daemon_that_may_do_less_than_the_one_who_asks(limited: Path, folder: Path) -> None:
    expected = {
        "ways": [],
        "capabilities": "obstacle",
        "namespace": "ok",
        "descriptors": "warning",
        "daemon": "ok",
    }
    compare("a daemon without CAP_SYS_BOOT", expected, ask(Setup(expected), folder, limited))
