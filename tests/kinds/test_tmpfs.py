"""Names that come again, and those that cannot; the samples go the whole way (test_conformance.py)."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import LateWrite
from fdbox.handover import arrive, seal
from fdbox.kinds import registry
from fdbox.kinds.look import look
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, open_path
from fdbox.model import BoxKey
from tests.fakes.carrier import FakeCarrier, FakeKernel
from tests.kinds.conformance import World, described
from tests.kinds.memories import ACL, MIB, see_all
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SHM = Path("/dev/shm")
USER = 1234


def place(folder: Path) -> Path:
    """Return where a sample has its files on tmpfs: of its own, and the same in both kernels."""
    return SHM / f"fdbox-test-{hashlib.sha256(bytes(folder)).hexdigest()[:16]}"


def made_at(path: Path, content: bytes = b"content") -> OwnedFd:
    """Return a new file at a path, or without a name in a directory."""
    flags = os.O_TMPFILE if path.is_dir() else os.O_CREAT | os.O_EXCL
    fd = open_path(path, flags | os.O_RDWR)
    os.pwrite(fd.fileno(), content * (MIB // 2), 0)
    os.lseek(fd.fileno(), 11, os.SEEK_SET)
    return fd


# --- samples ---------------------------------------------------------------------------------------------------------


def named(folder: Path) -> Entries:
    """Make POSIX shared memory, opened twice."""
    path = place(folder)
    writer = made_at(path)
    os.fchmod(writer.fileno(), 0o642)
    os.setxattr(writer.fileno(), "system.posix_acl_access", ACL)
    reader = open_path(path, os.O_RDONLY | os.O_NONBLOCK)
    return {"reader": reader, "writer": writer}


def of_somebody(folder: Path) -> Entries:
    fd = made_at(place(folder))
    os.fchown(fd.fileno(), USER, USER)
    os.fchmod(fd.fileno(), 0o400)
    return {"file": fd}


def twice_named(folder: Path) -> Entries:
    path = place(folder)
    first = made_at(path)
    path.with_suffix(".other").hardlink_to(path)
    return {"first": first, "second": open_path(path.with_suffix(".other"), os.O_RDWR)}


def also_named(folder: Path) -> Entries:
    """Make a file with a name that no descriptor of it was opened by."""
    entries = twice_named(folder)
    entries.pop("second").close()
    return {"file": entries["first"]}


def unnamed(folder: Path) -> Entries:
    return {"file": made_at(SHM)}


def unlinked(folder: Path) -> Entries:
    path = place(folder)
    writer = made_at(path)
    reader = open_path(path, os.O_RDONLY)
    path.unlink()
    return {"reader": reader, "writer": writer}


def sparse(folder: Path) -> Entries:
    fd = made_at(SHM)
    os.ftruncate(fd.fileno(), 64 * MIB)
    return {"file": fd}


def with_one_name_left(folder: Path) -> Entries:
    """Make a file of which only a name is left that nobody opened."""
    entries = also_named(folder)
    place(folder).unlink()
    return entries


def in_a_directory(folder: Path) -> Entries:
    place(folder).mkdir()
    return {"file": made_at(place(folder) / "file")}


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    """Return what is seen, and which names there are of it."""
    inodes = [os.fstat(fd)[1:3] for fd in fds.values()]
    paths = (place(folder), place(folder).with_suffix(".other"))
    names = [inodes.index(path.lstat()[1:3]) if path.exists() else None for path in paths]
    return [see_all(fds), names]


def observe_without_name(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    seen = see_all(fds)
    for name in fds:
        del seen[name]["names"]
    return seen


def observe_tmpfile(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    """Return what is seen, but for O_TMPFILE, which is no more than how it was opened."""
    seen = see_all(fds, holes=True)
    seen["file"]["flags"] &= ~os.O_TMPFILE
    return seen


def reboot(folder: Path) -> None:
    """Take away what is on tmpfs."""
    shutil.rmtree(place(folder), ignore_errors=True)
    for path in SHM.glob(f"{place(folder).name}*"):
        path.unlink(missing_ok=True)


def write_late(fds: Mapping[str, int]) -> None:
    with memfd.reopen(next(iter(fds.values())), os.O_RDWR) as own:
        os.pwrite(own.fileno(), b"late", 1 * MIB)


def unlink_late(fds: Mapping[str, int]) -> None:
    Path(f"/proc/self/fd/{fds['first']}").readlink().unlink()


def sample(
    name: str,
    make: Callable[[Path], Entries],
    see: Callable[[Mapping[str, int], Path], Any] = observe,
    disturb: Callable[[Mapping[str, int]], None] | None = None,
    *,
    entries: tuple[str, ...] = ("file",),
    lost: tuple[str, ...] = (),
    root: bool = False,
) -> Sample:
    kinds = dict.fromkeys(entries, "tmpfs-file")
    return Sample(
        f"tmpfs-file {name}", kinds, make, see, disturb, reboot=reboot, lost=lost, root=root
    )


SAMPLES = [
    sample("named", named, disturb=write_late, entries=("reader", "writer")),
    sample("of somebody", of_somebody, root=True),
    sample("with two names", twice_named, disturb=unlink_late, entries=("first", "second")),
    sample("with another name", also_named, observe_without_name, lost=("1 of its names",)),
    sample("with a name left", with_one_name_left, observe_without_name, lost=("1 of its names",)),
    sample("in a directory", in_a_directory, observe_without_name, lost=("No such file",)),
    sample("without a name", unnamed, observe_tmpfile),
    sample("unlinked", unlinked, entries=("reader", "writer")),
    sample("sparse", sparse, observe_tmpfile, write_late),
]


# --- what becomes of a name ------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="fdbox-test-", dir=SHM) as made:
        yield Path(made)


@dataclass
class Way:
    """A way across for one file, which is put into a box of `owner`."""

    carrier: FakeCarrier = field(default_factory=FakeCarrier)
    kernel: FakeKernel = field(default_factory=FakeKernel)
    made: list[OwnedFd] = field(default_factory=list)

    def leave(self, fd: OwnedFd, owner: int = 0) -> None:
        with fd:
            box = BoxKey(owner, "box")
            sealed = seal.seal(box, described({"file": fd}), self.carrier, self.kernel)
            seal.write_index([sealed], self.carrier, self.kernel)
            self.carrier.cross(self.kernel)
            sealed.freight.close()
            sealed.manifest.close()

    def arrive(self) -> tuple[int, list[str]]:
        """Return the file, and what is told to be lost."""
        lost: list[str] = []
        for step in arrive.arrive(self.carrier, self.kernel, arrive.Past()):
            if isinstance(step, arrive.BoxCame):
                self.made += [one.fd for one in step.entries.values()]
                lost += [loss.reason for loss in step.losses]
        (fd,) = self.made
        return fd.fileno(), lost


@pytest.fixture
def way() -> Iterator[Way]:
    made = Way()
    yield made
    for fd in made.made:
        fd.close()
    made.carrier.switch_off()


def came_without_a_name(way: Way, because: str) -> None:
    fd, (lost,) = way.arrive()
    assert because in lost
    assert os.fstat(fd).st_nlink == 0
    assert os.pread(fd, 7, 0) == b"content"


def test_a_name_that_is_taken_stays_who_has_it(folder: Path, way: Way) -> None:
    path = folder / "file"
    way.leave(made_at(path))
    path.unlink()
    path.write_bytes(b"somebody else's")
    came_without_a_name(way, "File exists")
    assert path.read_bytes() == b"somebody else's"


def test_a_name_that_is_a_link_now_is_not_followed(folder: Path, way: Way) -> None:
    path = folder / "file"
    way.leave(made_at(path))
    path.unlink()
    path.symlink_to(folder / "elsewhere")
    came_without_a_name(way, "File exists")
    assert not (folder / "elsewhere").exists()


def test_a_directory_that_is_a_link_now_is_not_followed(folder: Path, way: Way) -> None:
    path = folder / "directory" / "file"
    path.parent.mkdir()
    way.leave(made_at(path))
    path.unlink()
    path.parent.rename(folder / "elsewhere")
    path.parent.symlink_to(folder / "elsewhere")
    came_without_a_name(way, "Not a directory")
    assert not list((folder / "elsewhere").iterdir())


def test_no_name_is_made_on_another_file_system(folder: Path, way: Way, tmp_path: Path) -> None:
    if memfd.accepts_seals(fd := os.open(tmp_path, os.O_RDONLY)):
        pytest.skip("this is tmpfs, too")
    os.close(fd)
    directory = folder / "directory"
    directory.mkdir()
    way.leave(made_at(directory / "file"))
    shutil.rmtree(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memfd, "is_shmem", lambda fd: not os.path.isdir(f"/proc/self/fd/{fd}"))  # noqa: PTH112
        directory.mkdir()
        came_without_a_name(way, "of no tmpfs")


@pytest.mark.root
@pytest.mark.parametrize(
    ("owner", "of_file", "of_directory", "mode", "because"),
    [
        (0, USER, 0, 0o755, ""),
        (USER, USER, USER, 0o755, ""),
        (USER, USER, 0, 0o1777, ""),
        (USER, USER, 0, 0o755, "may make no files"),
        (USER, 0, USER, 0o755, "does not own it"),
        (USER, USER + 1, 0, 0o1777, "does not own it"),
    ],
)
def test_a_box_gives_nobody_names_that_he_could_not_make(
    folder: Path, way: Way, owner: int, of_file: int, of_directory: int, mode: int, because: str
) -> None:
    os.chown(folder, of_directory, of_directory)
    folder.chmod(mode)
    path = folder / "file"
    fd = made_at(path)
    os.fchown(fd.fileno(), of_file, of_file)
    way.leave(fd, owner)
    path.unlink()
    if because:
        came_without_a_name(way, because)
        assert not path.exists()
        return
    fd_number, lost = way.arrive()
    assert lost == []
    assert os.path.samestat(path.lstat(), os.fstat(fd_number))
    assert path.lstat().st_uid == of_file


def test_too_little_room_on_tmpfs_costs_the_name_only(folder: Path, way: Way) -> None:
    path = folder / "file"
    way.leave(made_at(path))
    path.unlink()

    def full(*arguments: object, **more: object) -> int:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", full)
        fd, (lost,) = way.arrive()
    assert "No space left" in lost
    assert os.pread(fd, 7, 0) == b"content"


@pytest.mark.root
def test_a_path_that_leads_elsewhere_from_here_is_told(folder: Path, way: Way) -> None:
    """The file is of a mount that another file system lies over now, as one of another namespace would be."""
    hidden = folder / "hidden"
    hidden.mkdir()
    fd = made_at(hidden / "file")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"fdbox-test", bytes(hidden), b"tmpfs", 0, None) == 0
    try:
        (hidden / "file").write_bytes(b"another")
        way.leave(fd)
        came_without_a_name(way, "1 of its names")
        assert (hidden / "file").read_bytes() == b"another"
    finally:
        libc.umount2(bytes(hidden), 2)  # MNT_DETACH


def test_a_name_that_is_no_text_comes_again(way: Way, folder: Path) -> None:
    path = folder / os.fsdecode(b"\xff\n (deleted)")
    fd = made_at(path)
    seen = look(fd.fileno())
    assert registry.recognise(seen).describe(seen).label.endswith("\ufffd\n (deleted)")
    way.leave(fd)
    path.unlink()
    number, lost = way.arrive()
    assert lost == []
    assert os.path.samestat(path.lstat(), os.fstat(number))


def test_a_file_that_is_given_a_name_late_is_noticed(tmp_path: Path, folder: Path) -> None:
    world = World(tmp_path)
    fd = made_at(folder)
    sealed = world.seal({"file": fd})
    try:
        with open_path(folder, os.O_PATH) as directory:
            os.link(f"/proc/self/fd/{fd.fileno()}", "late", dst_dir_fd=directory.fileno())
        with pytest.raises(LateWrite):
            sealed.verify()
    finally:
        sealed.thaw()
        fd.close()
