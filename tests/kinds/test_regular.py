from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import LateWrite
from fdbox.linux import locks, memfd
from fdbox.linux.fd import OwnedFd, open_path
from fdbox.linux.locks import Lock
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.kinds.conformance import World

CONTENT = b"what is in the file " * 1000


def made(folder: Path, flags: int = os.O_RDWR, name: str = "file") -> OwnedFd:
    path = folder / name
    path.write_bytes(CONTENT)
    path.chmod(0o640)
    fd = open_path(path, flags)
    os.lseek(fd.fileno(), 77, os.SEEK_SET)
    return fd


def opened(flags: int) -> Callable[[Path], Entries]:
    return lambda folder: {"file": made(folder, flags)}


def removed(flags: int) -> Callable[[Path], Entries]:
    def make(folder: Path) -> Entries:
        fd = made(folder, flags)
        (folder / "file").unlink()
        return {"file": fd}

    return make


def sparse(folder: Path) -> Entries:
    entries = removed(os.O_RDWR)(folder)
    os.pwrite(entries["file"].fileno(), b"the end", 8 << 20)
    return entries


def temporary(folder: Path) -> Entries:
    fd = OwnedFd(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    os.write(fd.fileno(), b"never had a name")
    return {"file": fd}


def several(folder: Path) -> Entries:
    """Three open files of one removed file, of which two entries share one."""
    first = removed(os.O_RDWR)(folder)["file"]
    reader = memfd.reopen(first.fileno(), os.O_RDONLY)
    return {"file": first, "reader": reader, "dup": first.dup()}


def locked(folder: Path) -> Entries:
    first, second = made(folder), made(folder, name="other")
    fcntl.flock(first.fileno(), fcntl.LOCK_EX)
    locks.take(second.fileno(), Lock("ofd", exclusive=True, start=10, length=20))
    locks.take(second.fileno(), Lock("ofd", exclusive=False, start=100))
    return {"file": first, "other": second}


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    found = {}
    for name, fd in fds.items():
        status = os.fstat(fd)
        with memfd.reopen(fd, os.O_RDONLY) as own:
            content = os.pread(own.fileno(), status.st_size, 0)
        found[name] = [
            fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_TMPFILE,
            os.lseek(fd, 0, os.SEEK_CUR),
            status.st_size,
            status.st_blocks * 512 < status.st_size // 2,
            oct(status.st_mode),
            status.st_nlink,
            status.st_uid,
            hashlib.sha256(content).hexdigest(),
            sorted(
                [lock.kind, lock.exclusive, lock.start, lock.length] for lock in locks.held_by(fd)
            ),
        ]
    if "dup" in fds:
        os.pwrite(fds["dup"], b"WHAT", 0)
        os.lseek(fds["dup"], 5, os.SEEK_SET)
        found["together"] = [
            str(os.pread(fds["reader"], 4, 0)),
            os.lseek(fds["file"], 0, os.SEEK_CUR),
        ]
    return found


def move(fds: Mapping[str, int]) -> None:
    os.lseek(fds["file"], 3, os.SEEK_SET)


def overwrite(fds: Mapping[str, int]) -> None:
    os.pwrite(fds["file"], b"late", 40)


def one(name: str, make: Callable[[Path], Entries], disturb: Any = move) -> Sample:  # noqa: ANN401
    return Sample(f"regular file {name}", {"file": "regular-file"}, make, observe, disturb)


SAMPLES = [
    one("read-write", opened(os.O_RDWR)),
    one("read-only", opened(os.O_RDONLY | os.O_NOATIME)),
    one("write-only", opened(os.O_WRONLY | os.O_APPEND | os.O_DSYNC)),
    one("removed", removed(os.O_RDWR), overwrite),
    one("removed and read-only", removed(os.O_RDONLY)),
    one("removed and sparse", sparse, overwrite),
    one("without a name", temporary),
    Sample(
        "regular file opened several times",
        dict.fromkeys(("file", "reader", "dup"), "regular-file"),
        several,
        observe,
        overwrite,
    ),
    Sample(
        "regular file locked",
        {"file": "regular-file", "other": "regular-file"},
        locked,
        observe,
        lambda fds: fcntl.flock(fds["file"], fcntl.LOCK_UN),
    ),
]


def arrives(world: World, change: Callable[[Path], None]) -> str:
    """Return why a file is lost, if something was changed where it is."""
    sample = SAMPLES[0]
    world.jump(sample, world.make(sample))
    change(world.folder / "own" / "file")
    entries, (loss,) = world.arrive()
    assert entries == {}
    return loss.reason


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(CONTENT)
    other.rename(path)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.symlink_to("moved")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replace, "is another file than it was"),
        (replace_by_link, "is another file than it was"),
        (replace_by_fifo, "is another file than it was"),
        (replace_folder, "symbolic link"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_what_took_its_place_is_not_opened(
    world: World, change: Callable[[Path], None], said: str
) -> None:
    assert said in arrives(world, change)


def test_a_file_that_was_renamed_is_found_under_its_new_name(world: World) -> None:
    entries = world.make(SAMPLES[0])
    (world.folder / "own" / "file").rename(world.folder / "own" / "renamed")
    world.jump(SAMPLES[0], entries)
    arrived, losses = world.arrive()
    assert losses == []
    assert os.readlink(f"/proc/self/fd/{arrived['file'].fileno()}").endswith("/own/renamed")


def test_a_file_renamed_after_it_was_saved_is_a_late_write(world: World) -> None:
    sealed = world.seal(world.make(SAMPLES[0]))
    (world.folder / "own" / "file").rename(world.folder / "own" / "renamed")
    with pytest.raises(LateWrite):
        sealed.verify()
    sealed.thaw()


def test_what_lost_the_name_it_was_opened_by_travels_with_its_bytes(world: World) -> None:
    entries = world.make(SAMPLES[0])
    path = world.folder / "own" / "file"
    path.with_name("second").hardlink_to(path)
    path.unlink()
    path.write_bytes(b"another file of the same name")
    world.jump(SAMPLES[0], entries)
    arrived, (loss,) = world.arrive()
    assert "its other names" in loss.reason
    assert os.pread(arrived["file"].fileno(), 99999, 0) == CONTENT
    assert path.read_bytes() == b"another file of the same name"


def test_a_lock_that_somebody_has_meanwhile_is_told(world: World) -> None:
    sample = SAMPLES[-1]
    world.jump(sample, world.make(sample))
    with open_path(world.folder / "own" / "file", os.O_RDWR) as thief:
        fcntl.flock(thief.fileno(), fcntl.LOCK_EX)
        entries, losses = world.arrive()
    assert set(entries) == {"file", "other"}
    assert [loss.entry for loss in losses] == ["file"]
    assert "its flock lock" in losses[0].reason


def test_without_its_folder_a_removed_file_is_memory_and_that_is_told(world: World) -> None:
    sample = SAMPLES[3]
    world.jump(sample, world.make(sample))
    (world.folder / "own").rename(world.folder / "gone")
    entries, (loss,) = world.arrive()
    assert "it is in memory now" in loss.reason
    fd = entries["file"].fileno()
    assert os.pread(fd, 99999, 0) == CONTENT
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640


def test_a_lease_is_told(world: World) -> None:
    entries = opened(os.O_RDONLY)(world.folder)
    world.made.append(entries)
    fcntl.fcntl(entries["file"].fileno(), fcntl.F_SETLEASE, fcntl.F_RDLCK)
    sealed = world.seal(entries)
    assert sealed.lost == [("file", "a lease on the file")]
    sealed.thaw()
