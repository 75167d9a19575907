"""The kind alone, without a carrier: what it sends and how, and what it refuses. tests/handover has the way across."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.carrier import FakeKernel

from fdbox.errors import CannotCarry, FdboxError, KernelError, NoRoom
from fdbox.kinds import registry
from fdbox.kinds.base import Freight, Loaded, OpenFile, look
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, close_all, dup
from fdbox.linux.memfd import Seals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.fdt.tree import Node

MIB = 1 << 20
KIND = registry.CARRIED["memfd"]
WRITING = Seals.WRITE | Seals.GROW | Seals.SHRINK | Seals.FUTURE_WRITE


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
        parcels = {number: fd for fd, number in self.freight.parcels}
        if token not in parcels:
            raise KernelError("no such token")
        return dup(parcels[token])

    def load(self, component: Node) -> list[Loaded]:
        loaded = list(KIND.load(component, self.take))
        self.made += [one for one in loaded if isinstance(one, OwnedFd)]
        return loaded


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
    assert bench.freight.parcels == [(fd.fileno(), 1)], "the one that can write"
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
    sent = {token: parcel for parcel, token in bench.freight.parcels}
    KIND.verify(files, component, sent)
    with mmap.mmap(fd.fileno(), 4 * MIB) as mapped:
        mapped[MIB] = 0
    with pytest.raises(CannotCarry, match="'mapped' was changed"):
        KIND.verify(files, component, sent)


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
