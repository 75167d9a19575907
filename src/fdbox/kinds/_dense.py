"""A file's bytes as a parcel: all that is not a hole, one piece behind the other.

    size; token; extents = <offset length ...>;    in a node of the kind's own

The parcel is a copy in a memfd, where the carrier leaves memory in place and there is room for it; else a stream.

A kind sends with `send`, compares with `same` (in its `verify`), and makes the bytes again with `receive`.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fdbox.errors import FdtError, KernelError, NoRoom
from fdbox.linux import memfd

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import OpenFile

#: offset and length of what is not a hole, ascending
Extents = Sequence[tuple[int, int]]
#: Writes a buffer at an offset and returns how many bytes it took.
Write = Callable[[memoryview, int], int]

MAX_SIZE = (1 << 63) - 1
#: for the kernel's own notes of one preserved file (13 KiB were measured)
NOTES = 16 << 10
_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)


def take_room(file: OpenFile, wanted: int, freight: Freight) -> None:
    """Take `wanted` bytes of what is free; NoRoom naming the entry."""
    if wanted > freight.free:
        raise NoRoom(
            f"saving the {file.description.kind} {file.entry!r} takes {wanted} bytes, "
            f"and {max(0, freight.free)} are free",
            entry=file.entry,
        )
    freight.free -= wanted


# --- leaving ---------------------------------------------------------------------------------------------------------


def send(file: OpenFile, node: Node, freight: Freight, extents: Extents | None = None) -> None:
    """Send the bytes of a regular file; write `size`, `token` and `extents`. The file itself stays untouched.

    Args:
        file: One that this process may read: it is opened anew.
        node: Where the properties go.
        freight: Takes the parcel.
        extents: What is to be sent, where SEEK_DATA does not tell.

    Raises:
        NoRoom: before anything is taken.
        KernelError: it cannot be read.
    """
    if extents is None:
        extents = memfd.data_extents(file.fd)
    size = os.fstat(file.fd).st_size
    length = sum(length for _, length in extents)
    if freight.streams and not (freight.in_place and length + NOTES <= freight.free):
        token = freight.stream(file.fd, extents, file.entry)
    else:
        take_room(file, length + NOTES, freight)
        token = _send_copy(file, extents, length, freight)
    node.set_u64("size", size)
    node.set_u64("token", token)
    write_extents(node, extents)


def _send_copy(file: OpenFile, extents: Extents, length: int, freight: Freight) -> int:
    copy = memfd.create("fdbox-copy")
    token = freight.give(copy, file.entry)
    os.ftruncate(copy.fileno(), length)
    with memfd.reopen(file.fd, os.O_RDONLY) as source:
        _copy(source.fileno(), _writer(copy.fileno()), _pieces(extents))
    return token


def same(file: OpenFile, node: Node, freight: Freight, now: Extents | None = None) -> bool:
    """Return whether a file has the size and the bytes that `send` has sent.

    It may have fewer holes: where huge pages are put together, the kernel fills them with zeros.

    Args:
        file: The file, as it was given to `send`.
        node: Where `send` has written.
        freight: Has the parcel.
        now: What is not a hole now, where SEEK_DATA does not tell.
    """
    if os.fstat(file.fd).st_size != node.u64("size"):
        return False
    sent, token = read_extents(node), node.u64("token")
    now = memfd.data_extents(file.fd) if now is None else now
    with memfd.reopen(file.fd, os.O_RDONLY) as source:
        if not all(
            is_zero(os.pread(source.fileno(), length, start))
            for start, _, length in _pieces(_without(now, sent))
        ):
            return False
        if freight.is_stream(token):
            return freight.is_unchanged(token)
        copy = freight.sent(token)
        return all(
            os.pread(source.fileno(), length, start) == os.pread(copy, length, at)
            for start, at, length in _pieces(sent)
        )


def is_zero(piece: bytes) -> bool:
    """Return whether there is nothing but zeros in at most 1 MiB; at the speed of memcmp(3)."""
    return piece == _ZEROS[: len(piece)]


def _without(extents: Extents, others: Extents) -> Iterator[tuple[int, int]]:
    """Yield the parts of `extents` that are in none of `others`; both ascend."""
    rest = iter([*others, (MAX_SIZE, 0)])
    other, length = next(rest)
    for start, size in extents:
        at, end = start, start + size
        while at < end:
            while other + length <= at:
                other, length = next(rest)
            if at < other:
                yield at, min(end, other) - at
            at = other + length


# --- arriving --------------------------------------------------------------------------------------------------------


def receive(node: Node, arrivals: Arrivals, fd: int, write: Write | None = None) -> None:
    """Give an empty file, open for writing, the size and the bytes that `send` has sent.

    Args:
        node: Where `send` has written.
        arrivals: Has the parcel.
        fd: The file, borrowed. Its position stays.
        write: How bytes get into it, where pwrite(2) does not do it.

    Raises:
        FdtError: the properties make no sense, or do not fit what came.
        OSError: as writing gives it.
    """
    extents, token = read_extents(node), node.u64("token")
    write = write or _writer(fd)
    if (stream := arrivals.stream(token)) is not None:
        _expect_bytes(node, stream.size, extents)
        _expect_room(stream.size, arrivals)
        os.ftruncate(fd, node.u64("size"))
        stream.pour(_Spread(extents, write))
        return
    with arrivals.take(token) as copy:
        expect_memory(node, copy.fileno())
        _expect_bytes(node, os.fstat(copy.fileno()).st_size, extents)
        os.ftruncate(fd, node.u64("size"))
        pieces = ((at, start, length) for start, at, length in _pieces(extents))
        _copy(copy.fileno(), write, pieces)


class _Spread:
    """Puts the bytes of a stream where they belong in the file."""

    def __init__(self, extents: Extents, write: Write) -> None:
        self._extents = extents
        self._write = write
        #: where in the stream each extent ends
        self._ends = list(itertools.accumulate(length for _, length in extents))

    def __call__(self, offset: int, piece: memoryview) -> None:
        at = bisect.bisect_right(self._ends, offset)
        while piece:
            start, length = self._extents[at]
            within = offset - (self._ends[at] - length)
            taken = min(length - within, len(piece))
            _write_all(self._write, piece[:taken], start + within)
            offset, piece, at = offset + taken, piece[taken:], at + 1


def _expect_room(wanted: int, arrivals: Arrivals) -> None:
    """Refuse what would drive the machine into the OOM killer; the file that has it stays."""
    if wanted > (free := arrivals.kernel.free_memory()):
        raise NoRoom(
            f"its {wanted} bytes do not fit into memory, of which {free} are free",
            remedy="free memory, and `fdbox import` the file that has it; an image stays, as .kept",
        )


def _expect_bytes(node: Node, count: int, extents: Extents) -> None:
    if count != sum(length for _, length in extents):
        raise FdtError(f"what came for {node.name} has not as many bytes as its extents")


def expect_memory(node: Node, fd: int) -> None:
    """Raise FdtError unless what came is memory, for whatever a box holds could have come."""
    if not memfd.is_shmem(fd):
        raise FdtError(f"what came for {node.name} is no memory")


def write_extents(node: Node, extents: Extents) -> None:
    """Write down what is not a hole."""
    node.set_u64s("extents", [number for extent in extents for number in extent])


def read_extents(node: Node) -> Extents:
    """Return what is not a hole; FdtError unless it lies within `size`, ascending."""
    numbers, size = node.u64s("extents"), node.u64("size")
    if size > MAX_SIZE:
        raise FdtError(f"{node.name} has a size that no file has")
    if len(numbers) % 2:
        raise FdtError(f"{node.name} has half an extent")
    extents = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for start, length in extents:
        if start < end or not length or start + length > size:
            raise FdtError(f"{node.name} has extents that no file has")
        end = start + length
    return extents


# --- copying ---------------------------------------------------------------------------------------------------------


def _pieces(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield (offset in the file, offset in the copy, length), in pieces of bounded length."""
    dense = 0
    for start, length in extents:
        for done in range(0, length, _CHUNK):
            piece = min(_CHUNK, length - done)
            yield start + done, dense, piece
            dense += piece


def _writer(fd: int) -> Write:
    return lambda buffer, offset: os.pwrite(fd, buffer, offset)


def _copy(source: int, write: Write, pieces: Iterator[tuple[int, int, int]]) -> None:
    """Copy (source offset, target offset, length); KernelError if the source has fewer bytes."""
    buffer = memoryview(bytearray(_CHUNK))
    for start, to, length in pieces:
        if os.preadv(source, [buffer[:length]], start) != length:
            raise KernelError("the file became shorter while it was read", remedy="seal again")
        _write_all(write, buffer[:length], to)


def _write_all(write: Write, piece: memoryview, offset: int) -> None:
    while piece:
        written = write(piece, offset)
        offset, piece = offset + written, piece[written:]
