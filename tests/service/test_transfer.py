"""Boxes to files and back, through the whole daemon."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.handover.carriers import imagefile
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, open_path
from tests.fakes.carrier import SECOND

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.daemon import Daemon

pytestmark = pytest.mark.root
MIB = 1 << 20


def fill(client: fdbox.Client) -> None:
    box = client.box("cache")
    with memfd.create("m", 1 << 32) as fd:
        os.pwrite(fd.fileno(), b"what matters", 1 << 31)
        box.put("m", fd)
    with OwnedFd(os.eventfd(7)) as fd:
        box.put("count", fd)


def run(
    daemon: Daemon, *arguments: str, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fdbox", *arguments, "--socket", str(daemon.socket)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_a_box_goes_to_another_machine(
    daemon: Daemon, client: fdbox.Client, tmp_path: Path
) -> None:
    fill(client)
    file = tmp_path / "cache.fdbox"
    done = run(daemon, "export", "cache", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert file.stat().st_size < MIB, "a hole is no bytes"
    assert [box.state for box in client.boxes()] == ["open"]
    daemon.kernel.running = SECOND
    done = run(daemon, "import", str(file), "other", "--owner", "7", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["box"] == {
        "name": "other",
        "owner": 7,
        "state": "open",
        "entries": 2,
    }
    box = client.existing_box("other", 7)
    with box.get("m") as fd:
        assert os.fstat(fd.fileno()).st_size == 1 << 32
        assert os.pread(fd.fileno(), 12, 1 << 31) == b"what matters"
    with box.get("count") as fd:
        assert os.eventfd_read(fd.fileno()) == 7
    with client.box("cache").get("count") as fd:
        assert os.eventfd_read(fd.fileno()) == 7, "the original goes on"
    assert run(daemon, "import", str(file)).returncode == 13  # BoxExists
    assert client.existing_box("cache").list()


def test_a_file_is_not_loaded_where_it_was_written(
    daemon: Daemon, client: fdbox.Client, tmp_path: Path
) -> None:
    fill(client)
    assert run(daemon, "export", "cache", str(tmp_path / "f")).returncode == 0
    done = run(daemon, "import", str(tmp_path / "f"), "again")
    assert done.returncode == fdbox.SameIncarnation.exit_status
    assert [box.name for box in client.boxes()] == ["cache"]


def test_what_means_nothing_elsewhere_is_refused(
    daemon: Daemon, client: fdbox.Client, tmp_path: Path
) -> None:
    with open_path(tmp_path, os.O_RDONLY) as folder:
        client.box("cache").put("folder", folder)
    done = run(daemon, "export", "cache", str(tmp_path / "f"))
    assert done.returncode == fdbox.CannotCarry.exit_status
    assert "'folder'" in done.stderr
    assert "memfd" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert [box.state for box in client.boxes()] == ["open"]


def test_a_sealed_box_can_be_exported(daemon: Daemon, client: fdbox.Client, tmp_path: Path) -> None:
    fill(client)
    client.box("cache").seal()
    assert run(daemon, "export", "cache", str(tmp_path / "f")).returncode == 0
    assert [box.state for box in client.boxes()] == ["sealed"]


def test_what_cannot_be_made_is_told_and_the_rest_is_there(
    daemon: Daemon, client: fdbox.Client, tmp_path: Path
) -> None:
    client.box("cache")
    with memfd.create("m", 3 * MIB) as fd, memfd.create("n", 5) as other:
        os.pwrite(fd.fileno(), os.urandom(3 * MIB), 0)
        client.box("cache").put("m", fd)
        client.box("cache").put("n", other)
        at = os.pread(fd.fileno(), 4096, MIB)
    file = tmp_path / "f"
    assert run(daemon, "export", "cache", str(file)).returncode == 0
    raw = file.read_bytes()
    file.write_bytes(raw.replace(at, bytes(4096)))
    daemon.kernel.running = SECOND
    done = run(daemon, "import", str(file), "other")
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert [entry.name for entry in client.existing_box("other").list()] == ["n"]


def test_what_is_no_export_makes_no_box(
    daemon: Daemon, client: fdbox.Client, tmp_path: Path
) -> None:
    file = tmp_path / "f"
    file.write_bytes(os.urandom(10_000))
    assert run(daemon, "import", str(file), "x").returncode == fdbox.ManifestInvalid.exit_status
    assert client.boxes() == []
    assert run(daemon, "import", str(tmp_path / "none")).returncode == 2
    for path in (str(tmp_path), "/dev/zero"):
        done = run(daemon, "import", path)
        assert done.returncode == fdbox.UsageError.exit_status
        assert "not a regular file" in done.stderr
        with open_path(path, os.O_RDONLY) as other, pytest.raises(fdbox.InvalidDescriptor):
            client.import_box(other)
    assert run(daemon, "export", "none", str(file)).returncode == 2, "it is there already"
    assert run(daemon, "export", "none", str(tmp_path / "g")).returncode == 12
    assert file.stat().st_size == 10_000


def test_only_an_empty_file_is_written_to(
    client: fdbox.Client, tmp_path: Path, memory: OwnedFd
) -> None:
    client.box("cache").put("m", memory)
    path = tmp_path / "f"
    path.write_bytes(b"precious")
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY):
        with open_path(path, flags) as file, pytest.raises(fdbox.InvalidDescriptor):
            client.box("cache").export(file)
    with OwnedFd(os.eventfd(0)) as event, pytest.raises(fdbox.InvalidDescriptor):
        client.box("cache").export(event)
    assert path.read_bytes() == b"precious"


def test_an_export_leaves_alone_what_it_has_not_made(
    daemon: Daemon, client: fdbox.Client, tmp_path: Path
) -> None:
    fill(client)
    others = tmp_path / "f.new", tmp_path / "target"
    for path in others:
        path.write_text("precious")
    (tmp_path / "g.new").symlink_to("target")
    (tmp_path / "h.new").mkdir()
    (tmp_path / "i").symlink_to("nowhere")
    for name in "fgh":
        assert run(daemon, "export", "cache", str(tmp_path / name)).returncode == 0
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert run(daemon, "export", "cache", str(tmp_path / "i")).returncode == 2
    assert run(daemon, "export", "none", str(tmp_path / "f")).returncode == 2
    assert [path.read_text() for path in others] == ["precious"] * 2
    names = {"f", "g", "h", "i", "f.new", "g.new", "h.new", "target"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize(
    "name", ["plain/f", "nowhere/f", "n" * 256, "", ".", "..", "plain", "/proc/f"]
)
def test_a_file_that_cannot_be_is_refused_in_a_sentence(
    name: str, daemon: Daemon, client: fdbox.Client, tmp_path: Path
) -> None:
    fill(client)
    (tmp_path / "plain").touch()
    done = run(daemon, "export", "cache", name, folder=tmp_path)
    assert (done.returncode, done.stdout) == (fdbox.UsageError.exit_status, "")
    assert done.stderr.startswith("fdbox: ")
    assert "name" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_the_name_of_a_file_need_not_be_text(
    daemon: Daemon, client: fdbox.Client, tmp_path: Path
) -> None:
    fill(client)
    for name, options in ((b"\xff", ["--json"]), (b"\xfe", [])):
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        done = run(daemon, "export", "cache", path, *options)
        assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.iterdir())) == 2


def exported(daemon: Daemon, client: fdbox.Client, tmp_path: Path) -> tuple[Path, Path]:
    """Return the files of a box, and of an empty one, that another kernel has written."""
    fill(client)
    client.box("empty")
    paths = tmp_path / "cache.fdbox", tmp_path / "empty.fdbox"
    for path in paths:
        assert run(daemon, "export", path.stem, str(path)).returncode == 0
        client.box(path.stem).delete()
    daemon.kernel.running = SECOND
    return paths


def test_an_import_that_the_keeper_has_no_room_for_makes_no_box(
    daemon: Daemon, client: fdbox.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hold(*_: object) -> None:
        raise fdbox.QuotaExceeded("the keeper has room for none")

    paths = exported(daemon, client, tmp_path)
    monkeypatch.setattr(daemon.service.vault, "hold", hold)
    for path in paths:
        assert run(daemon, "import", str(path)).returncode == fdbox.QuotaExceeded.exit_status
    assert client.boxes() == []


def test_an_import_of_what_cannot_be_looked_at_makes_no_box(
    daemon: Daemon, client: fdbox.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def readmit(*_: object) -> None:
        raise fdbox.InvalidDescriptor("it cannot be read")

    path, _ = exported(daemon, client, tmp_path)
    monkeypatch.setattr(daemon.service.vault, "readmit", readmit)
    done = run(daemon, "import", str(path))
    assert done.returncode == fdbox.InvalidDescriptor.exit_status
    assert client.boxes() == []


def test_an_import_that_does_not_fit_the_quota_makes_no_box(
    daemon: Daemon, client: fdbox.Client, tmp_path: Path
) -> None:
    path, _ = exported(daemon, client, tmp_path)
    with OwnedFd(os.eventfd(0)) as fd:
        box = client.box("full")
        for number in range(299):
            box.put(f"{number}", fd)
    assert run(daemon, "import", str(path)).returncode == fdbox.QuotaExceeded.exit_status
    assert [box.name for box in client.boxes()] == ["full"]


def test_nothing_is_imported_into_an_update_that_began_meanwhile(
    daemon: Daemon,
    client: fdbox.Client,
    tmp_path: Path,
    image: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, _ = exported(daemon, client, tmp_path)
    reading, jumping = threading.Event(), threading.Event()
    status: list[int] = []

    def free_memory() -> int:
        """Be asked by the import, when it has read the manifest."""
        reading.set()
        assert jumping.wait(20)
        return 1 << 40

    def jump() -> None:
        jumping.set()
        importing.join()

    monkeypatch.setattr(daemon.kernel, "free_memory", free_memory)
    importing = threading.Thread(
        target=lambda: status.append(run(daemon, "import", str(path)).returncode)
    )
    importing.start()
    assert reading.wait(20)
    daemon.kernel.on_jump = jump
    with pytest.raises(fdbox.FdboxError, match="cannot jump"):
        list(client.update(image, None, ""))
    assert status == [fdbox.UpdateInProgress.exit_status]
    assert client.boxes() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_file_system_that_is_full_is_no_matter_of_the_kernel(
    code: int, daemon: Daemon, client: fdbox.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    fill(client)
    monkeypatch.setattr(imagefile, "write", full)
    done = run(daemon, "export", "cache", str(tmp_path / "f"))
    assert done.returncode == fdbox.NoRoom.exit_status
    assert "free some" in done.stderr
    assert "dmesg" not in done.stderr
    assert list(tmp_path.iterdir()) == []
