"""One shipment as a file: chunks (chunks.py), and behind them the table that says which parcel they are of.

    0                 magic; offset and length of the table
    4096              chunks, each at a multiple of 4096
    the table         an FDT with its SHA-256 behind it (docs/formats/fdbox,image-v1.yaml):

    / {
        compatible = "fdbox,image-v1";
        chunk-size;
        parcel@0 { token; size; offsets; stored; codecs; checksums; };
    };

The head is written last, so a file that was not finished has none; it gets its name after that.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdbox.errors import FdtError, ManifestInvalid
from fdbox.fdt.tree import Node
from fdbox.handover import manifest
from fdbox.handover.carriers import chunks
from fdbox.handover.carriers.chunks import Chunk
from fdbox.linux import files, memfd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from fdbox.linux.fd import OwnedFd
    from fdbox.ports import Parcel, Sink

COMPATIBLE = "fdbox,image-v1"
_MAGIC = b"fdbox image v1\n\0"
_HEAD = struct.Struct("<16sQQ")
_START = files.BLOCK


@dataclass(frozen=True, slots=True)
class Stored:
    """A parcel in the file: how many bytes it has, and its chunks in order. It is a `ports.Stream`."""

    fd: int
    size: int
    chunks: tuple[Chunk, ...]

    def pour(self, sink: Sink) -> None:
        """Hand over every byte; errors as `chunks.pour`."""
        chunks.pour(self.fd, self.chunks, self.size, sink)


class Watched:
    """A stream whose errors somebody hears of, and may tell in other words; `watching` gives what it is taken in."""

    def __init__(
        self, stored: Stored, watching: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._stored = stored
        self._watching = watching
        self.size: int = stored.size

    def pour(self, sink: Sink) -> None:
        """Hand over every byte; errors as `chunks.pour`."""
        with self._watching():
            self._stored.pour(sink)


def extents_of(parcel: Parcel) -> Sequence[tuple[int, int]]:
    """Return what is written of a parcel: of a stream its extents, of a file everything."""
    if parcel.extents is not None:
        return parcel.extents
    size = os.fstat(parcel.fd).st_size
    return [(0, size)] if size else []


def length_of(parcel: Parcel) -> int:
    """Return how many bytes are written of a parcel."""
    return sum(length for _, length in extents_of(parcel))


def room_for(parcels: Sequence[Parcel]) -> int:
    """Return how many bytes a file of them takes, if nothing can be compressed."""
    return sum(length_of(parcel) + files.BLOCK for parcel in parcels)


def write(fd: int, parcels: Sequence[Parcel]) -> dict[int, tuple[Chunk, ...]]:
    """Write parcels to a new file, and make it outlive a power cut; return the chunks of each token.

    Errors as `chunks.Writer.write`.
    """
    writer = chunks.Writer(fd, _START)
    jobs = [[*chunks.cut(parcel.fd, extents_of(parcel))] for parcel in parcels]
    made = writer.write(job for of_one in jobs for job in of_one)
    found = {
        parcel.token: tuple(next(made) for _ in of_one)
        for parcel, of_one in zip(parcels, jobs, strict=True)
    }
    packed = manifest.pack(table(parcels, found))
    files.leave_direct(fd)
    _write_at(fd, packed, writer.end)
    _write_at(fd, _HEAD.pack(_MAGIC, writer.end, len(packed)).ljust(_START, b"\0"), 0)
    os.fsync(fd)
    return found


def is_unchanged(parcel: Parcel, made: Sequence[Chunk]) -> bool:
    """Return whether the bytes of a parcel are still those that were written."""
    fresh = chunks.checksums(chunks.cut(parcel.fd, extents_of(parcel)))
    return [*fresh] == [chunk.checksum for chunk in made]


def table(parcels: Sequence[Parcel], made: Mapping[int, Sequence[Chunk]]) -> Node:
    """Return the table of parcels whose chunks, by token, were written."""
    root = Node("")
    root.set_text("compatible", COMPATIBLE)
    root.set_u32("chunk-size", chunks.SIZE)
    for number, parcel in enumerate(parcels):
        _write_parcel(root.add(f"parcel@{number}"), parcel, made[parcel.token])
    return root


def _write_parcel(node: Node, parcel: Parcel, made: Sequence[Chunk]) -> None:
    node.set_u64("token", parcel.token)
    node.set_u64("size", length_of(parcel))
    if not made:
        return
    node.set_u64s("offsets", [chunk.offset for chunk in made])
    node.set_u32s("stored", [chunk.stored for chunk in made])
    node.set_u32s("codecs", [chunk.codec for chunk in made])
    node.set_data("checksums", b"".join(chunk.checksum for chunk in made))


def _write_at(fd: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def read(fd: int) -> dict[int, Stored]:
    """Return what is in a borrowed file, by token.

    Raises:
        ManifestInvalid: it is no image, or not whole.
        OSError: it cannot be read.
    """
    with memfd.reopen(fd, os.O_RDONLY) as plain:  # small reads do not go past the page cache
        root, end = _read_table(plain.fileno())
    try:
        _check_format(root)
        return dict(_read_parcel(fd, node, end) for node in root.children)
    except FdtError as error:
        raise ManifestInvalid(f"the image's table is not whole: {error.message}") from error


def _check_format(root: Node) -> None:
    if (found := root.text("compatible")) != COMPATIBLE:
        raise ManifestInvalid(f"this is {found!r}, and this fdbox knows {COMPATIBLE!r}")
    if root.u32("chunk-size") != chunks.SIZE:
        raise FdtError("its chunks have another size")


def _read_table(fd: int) -> tuple[Node, int]:
    """Return the table, and where the chunks before it end."""
    size = os.fstat(fd).st_size
    head = os.pread(fd, _HEAD.size, 0)
    if len(head) != _HEAD.size or not head.startswith(_MAGIC):
        raise ManifestInvalid("this is no image of fdbox", remedy="give one that fdbox has written")
    _, start, length = _HEAD.unpack(head)
    if not 0 < length <= manifest.MAX_BLOB or start + length > size:
        raise ManifestInvalid("the image is not whole: its table lies outside")
    return manifest.unpack(os.pread(fd, length, start)), start


def _read_parcel(fd: int, node: Node, end: int) -> tuple[int, Stored]:
    size = node.u64("size")
    if not size:
        return node.u64("token"), Stored(fd, 0, ())
    count = -(-size // chunks.SIZE)
    columns = node.u64s("offsets"), node.u32s("stored"), node.u32s("codecs"), [*_checksums(node)]
    if any(len(column) != count for column in columns):
        raise FdtError(f"{node.name} has not as many chunks as its size wants")
    found = tuple(Chunk(*row) for row in zip(*columns, strict=True))
    for chunk in found:
        if chunk.stored > chunks.SIZE or chunk.offset + chunk.stored > end:
            raise FdtError(f"{node.name} has a chunk that no file has")
        if chunk.offset % files.BLOCK or chunk.codec not in (chunks.RAW, chunks.ZSTD):
            raise FdtError(f"{node.name} has a chunk that this fdbox does not understand")
    return node.u64("token"), Stored(fd, size, found)


def _checksums(node: Node) -> Iterator[bytes]:
    data = node.data("checksums")
    if len(data) % chunks.CHECKSUM:
        raise FdtError(f"{node.name} has a part of a checksum")
    for at in range(0, len(data), chunks.CHECKSUM):
        yield data[at : at + chunks.CHECKSUM]


def to_memory(stored: Stored, name: str) -> OwnedFd:
    """Return a new memfd with the bytes of a parcel, of a manifest or a component: what is large is poured.

    Errors as `Stored.pour`, and ManifestInvalid for what is larger than either can be, before any memory is taken.
    """
    if stored.size > manifest.MAX_BLOB:
        raise ManifestInvalid(f"it has {stored.size} bytes where a component should be")
    memory = memfd.create(name, stored.size)
    try:
        stored.pour(lambda offset, data: _write_all(memory.fileno(), data, offset))
    except BaseException:
        memory.close()
        raise
    return memory


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        offset, data = offset + written, data[written:]
