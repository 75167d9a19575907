"""What it sends and how, and what it refuses; the samples go the whole way (test_conformance.py)."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdbox.errors import FdboxError, KernelError, LateWrite, NoRoom
from fdbox.kinds import registry
from fdbox.kinds.freight import Arrivals, Freight, Made
from fdbox.kinds.look import OpenFile, look
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, close_all, dup
from fdbox.linux.memfd import Seals
from fdbox.ports import Parcel
from tests.fakes.carrier import FakeKernel
from tests.kinds.memories import ACL, MIB, mapped, of_mapping, see_all
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from fdbox.fdt.tree import Node

KIND = registry.CARRIED["memfd"]
WRITING = Seals.WRITE | Seals.GROW | Seals.SHRINK | Seals.FUTURE_WRITE


# --- samples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What kind of memfd to make, in the order of the fields."""

    size: int = 3 * MIB + 5
    data: Mapping[int, bytes] = field(default_factory=lambda: {0: b"first", 2 * MIB: b"x" * MIB})
    seal_exec: bool = False
    allow_sealing: bool = True
    mode: int | None = None
    owner: tuple[int, int] | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    seals: int = 0
    #: entry -> flags it is opened with; None: the one that it was made with
    opened: Mapping[str, int | None] = field(default_factory=lambda: {"memory": None})
    position: int = 11

    def __call__(self, folder: Path) -> Entries:
        first = memfd.create(
            "näme", self.size, seal_exec=self.seal_exec, allow_sealing=self.allow_sealing
        )
        for start, content in self.data.items():
            os.pwrite(first.fileno(), content, start)
        if self.owner is not None:
            os.fchown(first.fileno(), *self.owner)
        if self.mode is not None:
            os.fchmod(first.fileno(), self.mode)
        for name, value in self.xattrs.items():
            os.setxattr(first.fileno(), name, value)
        if self.seals:
            memfd.add_seals(first.fileno(), Seals(self.seals))
        with first:
            os.lseek(first.fileno(), self.position, os.SEEK_SET)
            return {name: self._open(first, flags) for name, flags in self.opened.items()}

    def _open(self, first: OwnedFd, flags: int | None) -> OwnedFd:
        if flags is None:
            return first.dup()
        fd = memfd.reopen(first.fileno(), flags)
        os.lseek(fd.fileno(), 3, os.SEEK_SET)
        return fd


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    return see_all(fds)


def observe_holes(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    return see_all(fds, holes=True)


def write_late(fds: Mapping[str, int]) -> None:
    os.pwrite(next(iter(fds.values())), b"late", 1)


def write_into_a_hole(fds: Mapping[str, int]) -> None:
    os.pwrite(next(iter(fds.values())), b"late", 32 * MIB)


def change_mode(fds: Mapping[str, int]) -> None:
    os.fchmod(next(iter(fds.values())), 0o604)


def move(fds: Mapping[str, int]) -> None:
    os.lseek(fds["reader"], 1, os.SEEK_CUR)


def anonymous(folder: Path) -> Entries:
    return {"memory": mapped(MIB + 4096, b"anonymous")}


def segment(folder: Path) -> Entries:
    """Make a System V segment, which goes when its last mapping does."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    identity = libc.shmget(0, 2 * MIB, 0o1600)  # IPC_PRIVATE, IPC_CREAT
    assert identity >= 0
    address = libc.shmat(identity, None, 0)
    ctypes.memmove(address, b"segment", 7)
    libc.shmctl(identity, 0, None)  # IPC_RMID
    fd = of_mapping("/SYSV")
    libc.shmdt(ctypes.c_void_p(address))
    return {"memory": fd}


def locked(folder: Path) -> Entries:
    entries = Recipe()(folder)
    fcntl.flock(entries["memory"].fileno(), fcntl.LOCK_SH)
    return entries


def observe_unlocked(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    fcntl.flock(fds["memory"], fcntl.LOCK_UN)
    return see_all(fds)


SPARSE = Recipe(size=64 * MIB, data={MIB: b"data" * 4096, 40 * MIB: b"more"})
READERS = {"writer": None, "reader": os.O_RDONLY, "appender": os.O_RDWR | os.O_APPEND}
SAMPLES = [
    *(
        Sample(
            f"memfd {name}",
            dict.fromkeys(recipe.opened, "memfd"),
            recipe,
            observe,
            disturb,
            root=recipe.owner is not None,
        )
        for name, recipe, disturb in (
            ("plain", Recipe(), change_mode),
            ("empty", Recipe(size=0, data={}, position=0), change_mode),
            ("sealed", Recipe(seals=WRITING | Seals.SEAL), None),
            ("sealed against new writers", Recipe(seals=Seals.FUTURE_WRITE), None),
            ("sealed in size", Recipe(seals=Seals.GROW | Seals.SHRINK), None),
            ("without seals", Recipe(allow_sealing=False), None),
            ("not executable", Recipe(seal_exec=True), write_late),
            ("not executable and sealed", Recipe(seal_exec=True, seals=WRITING), None),
            ("executable for ever", Recipe(seals=WRITING | Seals.EXEC), None),
            ("private", Recipe(mode=0o600), change_mode),
            ("of somebody", Recipe(owner=(1234, 4321), mode=0o6751), None),
            ("with a list", Recipe(xattrs={"system.posix_acl_access": ACL}), None),
            ("read-only", Recipe(opened={"memory": os.O_RDONLY}), None),
            ("write-only", Recipe(opened={"memory": os.O_WRONLY | os.O_NONBLOCK}), None),
            ("opened again", Recipe(opened=READERS), move),
            ("shared", Recipe(opened={"one": None, "two": None}), None),
            ("past its end", Recipe(size=5, position=1 << 40), None),
        )
    ),
    Sample("memfd sparse", {"memory": "memfd"}, SPARSE, observe_holes, write_into_a_hole),
    Sample("memfd locked", {"memory": "memfd"}, locked, observe_unlocked, lost=("file locks (1)",)),
    Sample("memfd mapping", {"memory": "memfd"}, anonymous, observe, root=True),
    Sample("memfd segment", {"memory": "memfd"}, segment, observe, root=True),
]


# --- the kind alone, without a carrier -------------------------------------------------------------------------------


@dataclass
class Bench:
    """Descriptors, and what is made of them."""

    made: list[OwnedFd] = field(default_factory=list)
    freight: Freight = field(default_factory=lambda: Freight(FakeKernel(), 1 << 30))

    def file(self, fd: OwnedFd, entry: str = "entry") -> OpenFile:
        self.made.append(fd)
        seen = look(fd.fileno())
        return OpenFile(seen, KIND.describe(seen), (entry,))

    def memory(self, size: int, data: dict[int, bytes], **options: bool) -> OwnedFd:
        fd = memfd.create("m", size, **options)
        for start, content in data.items():
            os.pwrite(fd.fileno(), content, start)
        return fd

    def take(self, token: int) -> OwnedFd:
        parcels = {parcel.token: parcel.fd for parcel in self.freight.parcels}
        if token not in parcels:
            raise KernelError("no such token")
        return dup(parcels[token])

    def load(self, component: Node) -> list[OwnedFd | FdboxError]:
        loaded = list(KIND.load(component, Arrivals(self.freight.kernel, self.take)))
        made = [one.fd if isinstance(one, Made) else one for one in loaded]
        self.made += [one for one in made if isinstance(one, OwnedFd)]
        return made


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    close_all(made.made)
    made.freight.close()


def goes_in_place(bench: Bench, fd: OwnedFd) -> bool:
    component = KIND.save([bench.file(fd)], bench.freight)
    memory = component.child("memory@0")
    sent = bench.freight.parcels[memory.u64("token") - 1][0]
    in_place = sent == fd.fileno()
    assert memory.has("extents") != in_place
    return in_place


@pytest.mark.parametrize(
    ("size", "data", "in_place"),
    [
        (0, 0, True),
        (MIB, MIB, True),
        (MIB - 1, 0, True),  # not worth it
        (MIB, 0, False),
        (4 * MIB, 2 * MIB, True),  # as many holes as data
        (4 * MIB + 4096, 2 * MIB, False),
    ],
)
def test_what_is_mostly_holes_travels_densely(
    bench: Bench, size: int, data: int, in_place: bool
) -> None:
    assert goes_in_place(bench, bench.memory(size, {0: b"x" * data})) == in_place


@pytest.mark.parametrize(
    ("seals", "mode", "in_place"),
    [
        (Seals.EXEC, 0o666, False),
        (Seals.EXEC | WRITING, 0o666, False),
        (Seals.EXEC | WRITING, 0o777, True),
        (WRITING, 0o666, True),
    ],
)
def test_a_seal_against_execution_travels_where_the_kernel_adds_none(
    bench: Bench, seals: Seals, mode: int, in_place: bool
) -> None:
    fd = bench.memory(4096, {0: b"x"})
    os.fchmod(fd.fileno(), mode)
    memfd.add_seals(fd.fileno(), seals)
    assert goes_in_place(bench, fd) == in_place


def test_room_is_asked_for_before_it_is_taken(bench: Bench) -> None:
    bench.freight.free = MIB
    fits = bench.file(bench.memory(4 * MIB, {0: b"x" * MIB}), "fits not")
    with pytest.raises(NoRoom, match=r"'fits not' takes \d+ bytes, and 1048576 are free") as caught:
        KIND.save([fits], bench.freight)
    assert caught.value.context["entry"] == "fits not"
    assert bench.freight.parcels == []


def test_two_descriptions_of_one_memory_send_it_once(bench: Bench) -> None:
    fd = bench.memory(4096, {0: b"bytes"})
    reader = memfd.reopen(fd.fileno(), os.O_RDONLY)
    os.lseek(reader.fileno(), 3, os.SEEK_SET)
    component = KIND.save([bench.file(reader), bench.file(fd)], bench.freight)
    assert bench.freight.parcels == [Parcel(fd.fileno(), 1)], "the one that can write"
    first, second = bench.load(component)
    assert isinstance(first, OwnedFd)
    assert isinstance(second, OwnedFd)
    os.pwrite(second.fileno(), b"E", 3)
    assert os.read(first.fileno(), 2) == b"Es"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(first.fileno(), b"no")


@pytest.mark.root
def test_another_owner_is_restored(bench: Bench) -> None:
    fd = bench.memory(2 * MIB, {0: b"x"})
    os.fchown(fd.fileno(), 1234, 4321)
    (loaded,) = bench.load(KIND.save([bench.file(fd)], bench.freight))
    assert isinstance(loaded, OwnedFd)
    status = os.fstat(loaded.fileno())
    assert (status.st_uid, status.st_gid) == (1234, 4321)


def test_a_memory_that_grew_on_the_way_is_not_taken_for_it(bench: Bench) -> None:
    fd = bench.memory(4096, {0: b"x"})
    component = KIND.save([bench.file(fd)], bench.freight)
    os.ftruncate(fd.fileno(), 8192)
    (loaded,) = bench.load(component)
    assert isinstance(loaded, FdboxError)
    assert "another size" in loaded.message


def test_seals_that_came_from_nowhere_are_told(bench: Bench) -> None:
    fd = bench.memory(4096, {0: b"x"})
    component = KIND.save([bench.file(fd)], bench.freight)
    memfd.add_seals(fd.fileno(), Seals.GROW)
    (loaded,) = bench.load(component)
    assert isinstance(loaded, KernelError)
    assert "other seals" in loaded.message


def test_a_change_after_saving_is_noticed_also_through_a_mapping(bench: Bench) -> None:
    fd = bench.memory(4 * MIB, {MIB: b"data"})
    files = [bench.file(fd, "mapped")]
    component = KIND.save(files, bench.freight)
    KIND.verify(files, component, bench.freight)
    with mmap.mmap(fd.fileno(), 4 * MIB) as mapped:
        mapped[MIB] = 0
    with pytest.raises(LateWrite, match="'mapped' was changed"):
        KIND.verify(files, component, bench.freight)


@given(
    data=st.dictionaries(st.integers(0, 700), st.binary(min_size=1, max_size=9000), max_size=8),
    size=st.integers(0, 3 * MIB),
)
def test_any_sparse_memory_is_made_again(data: dict[int, bytes], size: int) -> None:
    bench = Bench()
    try:
        pages = {page * 4096: content for page, content in data.items()}
        fd = bench.memory(size, pages)
        memfd.add_seals(fd.fileno(), Seals.SHRINK)
        (loaded,) = bench.load(KIND.save([bench.file(fd)], bench.freight))
        assert isinstance(loaded, OwnedFd)
        length = os.fstat(fd.fileno()).st_size
        assert os.fstat(loaded.fileno()).st_size == length
        assert os.pread(loaded.fileno(), length, 0) == os.pread(fd.fileno(), length, 0)
        assert memfd.data_extents(loaded.fileno()) == memfd.data_extents(fd.fileno())
        assert memfd.get_seals(loaded.fileno()) == Seals.SHRINK
    finally:
        close_all(bench.made)
        bench.freight.close()
