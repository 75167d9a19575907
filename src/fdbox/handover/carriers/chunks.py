"""Bytes to a file and back: in chunks, by several threads, each chunk with its checksum.

Everything has to pass through the processor, for its checksum: so copy_file_range(2) and splice(2) have nothing to
give. A chunk is read into a buffer, hashed, and written from it past the page cache (O_DIRECT): what takes long, takes
long outside of the interpreter (hashing, compressing, reading and writing let go of its lock). benchmarks/image.py
compares.

A chunk is compressed where that takes less time than to write what it saves, as both were measured a moment ago.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import xxhash
import zstandard

from fdbox.errors import KernelError, ManifestInvalid
from fdbox.linux import files, memfd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from fdbox.ports import Clock, Sink

    Extents = Sequence[tuple[int, int]]

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

SIZE = 4 << 20
CHECKSUM = 16
RAW, ZSTD = 0, 1
_SAMPLE = 64 << 10
_LEVEL = 1
#: enough to keep a disk busy while others hash
THREADS = 4


class Chunk(NamedTuple):
    """Where a chunk is in the file, how many bytes it takes there, whether they are RAW or ZSTD, and the XXH3-128 of what it was."""

    offset: int
    stored: int
    codec: int
    checksum: bytes


class Job(NamedTuple):
    """What makes one chunk: a borrowed descriptor, and the extents of it that are in the chunk."""

    fd: int
    extents: Extents


def cut(fd: int, extents: Extents) -> Iterator[Job]:
    """Yield the jobs of a stream: every chunk is full, but the last."""
    pieces: list[tuple[int, int]] = []
    room = SIZE
    for start, length in extents:
        at, end = start, start + length
        while at < end:
            taken = min(room, end - at)
            pieces.append((at, taken))
            at, room = at + taken, room - taken
            if not room:
                yield Job(fd, pieces)
                pieces, room = [], SIZE
    if pieces:
        yield Job(fd, pieces)


class Thrift:
    """Decides whether compressing pays; `clock` is injected."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._bytes, self._seconds = 0.0, 0.0

    def note_written(self, count: int, seconds: float) -> None:
        """Learn how fast one thread writes; what was long ago counts less and less."""
        self._bytes = self._bytes * 0.75 + count
        self._seconds = self._seconds * 0.75 + seconds

    def pack(self, data: memoryview, compress: Callable[[memoryview], bytes]) -> bytes | None:
        """Return data compressed, or None where it is better written as it is."""
        if not self._seconds or len(data) < _SAMPLE:
            return None
        middle = (len(data) - _SAMPLE) // 2
        begun = self._clock()
        kept = len(compress(data[middle : middle + _SAMPLE])) / _SAMPLE
        cost = (self._clock() - begun) / _SAMPLE
        if cost >= (1 - kept) * self._seconds / self._bytes:
            return None
        packed = compress(data)
        return packed if len(packed) < len(data) else None


class _Tools(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        # Of mmap(2), because O_DIRECT wants addresses that are multiples of a block.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.data = mmap.mmap(-1, SIZE, flags=private)
        self.packed = mmap.mmap(-1, SIZE, flags=private)
        self.compress = zstandard.ZstdCompressor(level=_LEVEL).compress
        self.decompressor = zstandard.ZstdDecompressor()


_tools = _Tools()


def checksums(jobs: Iterable[Job]) -> Iterator[bytes]:
    """Yield the checksum of what each job would write now, in their order; errors as `Writer.write`."""
    return _each(_checksum, jobs)


def _checksum(job: Job) -> bytes:
    return xxhash.xxh3_128_digest(_read(job, _tools.data))


class Writer:
    """Writes chunks to a file, from an offset on."""

    def __init__(self, fd: int, start: int, thrift: Thrift | None = None) -> None:
        """`fd` is borrowed, from `files.open_direct`."""
        self.end: int = start
        self._fd = fd
        self._lock = threading.Lock()
        self._thrift = thrift or Thrift()

    def write(self, jobs: Iterable[Job]) -> Iterator[Chunk]:
        """Write every chunk, and yield where it is, in the order of the jobs.

        Raises:
            KernelError: a source became shorter, or cannot be read.
            OSError: ENOSPC, EDQUOT, EIO.
        """
        return _each(self._write, jobs)

    def _write(self, job: Job) -> Chunk:
        data = _read(job, _tools.data)
        checksum = xxhash.xxh3_128_digest(data)
        packed = self._thrift.pack(data, _tools.compress)
        if packed is None:
            return Chunk(self._put(_tools.data, len(data)), len(data), RAW, checksum)
        _tools.packed[: len(packed)] = packed
        return Chunk(self._put(_tools.packed, len(packed)), len(packed), ZSTD, checksum)

    def _put(self, buffer: mmap.mmap, length: int) -> int:
        whole = -(-length // files.BLOCK) * files.BLOCK
        buffer[length:whole] = bytes(
            whole - length
        )  # not what was there before: that is of somebody else
        with self._lock:
            at, self.end = self.end, self.end + whole
        begun = time.perf_counter()
        self._write_all(memoryview(buffer)[:whole], at)
        with self._lock:
            self._thrift.note_written(whole, time.perf_counter() - begun)
        return at

    def _write_all(self, data: memoryview, offset: int) -> None:
        while data:
            try:
                written = os.pwrite(self._fd, data, offset)
            except OSError as error:
                # A file system may take the flag and refuse to write with it; a part that was written spoils the alignment.
                if error.errno != errno.EINVAL or not files.is_direct(self._fd):
                    raise
                files.leave_direct(self._fd)
                continue
            offset, data = offset + written, data[written:]


def pour(fd: int, chunks: Sequence[Chunk], size: int, sink: Sink) -> None:
    """Give every chunk of a stream of `size` bytes to `sink`.

    Raises:
        ManifestInvalid: a chunk is not what was written, or cannot be read.
        OSError: as the sink raises it.
    """

    def one(job: tuple[int, Chunk]) -> None:
        number, chunk = job
        length = min(SIZE, size - number * SIZE)
        sink(number * SIZE, _fetch(fd, chunk, length))

    for _ in _each(one, enumerate(chunks)):
        pass


def _fetch(fd: int, chunk: Chunk, length: int) -> memoryview:
    try:
        data = _stored(fd, chunk)
    except OSError as error:
        raise ManifestInvalid(f"it cannot be read at {chunk.offset}: {error.strerror}") from error
    if len(data) == chunk.stored and chunk.codec == ZSTD:
        data = _unpack(data, length)
    if len(data) != length or xxhash.xxh3_128_digest(data) != chunk.checksum:
        raise ManifestInvalid(f"it is damaged at {chunk.offset}: the checksum does not fit")
    return data


def _stored(fd: int, chunk: Chunk) -> memoryview:
    """Return what the file has of a chunk: asked again, at a whole block (O_DIRECT), until it is there or no more comes."""
    whole = memoryview(_tools.data)[: -(-chunk.stored // files.BLOCK) * files.BLOCK]
    done = 0
    while done < chunk.stored:
        at = done - done % files.BLOCK
        end = at + os.preadv(fd, [whole[at:]], chunk.offset + at)
        if end <= done:
            break
        done = end
    return whole[: min(done, chunk.stored)]


def _unpack(data: memoryview, length: int) -> memoryview:
    try:
        return memoryview(_tools.decompressor.decompress(data, max_output_size=length))
    except zstandard.ZstdError:  # what is damaged need not be zstd at all
        return memoryview(b"")


def _read(job: Job, buffer: mmap.mmap) -> memoryview:
    """Return the bytes of a job in the buffer. The file is opened anew: it may be shared, or open for writing only."""
    view, at = memoryview(buffer), 0
    with memfd.reopen(job.fd, os.O_RDONLY) as source:
        for start, length in job.extents:
            done = 0
            while done < length:
                got = os.preadv(source.fileno(), [view[at : at + length - done]], start + done)
                if not got:
                    raise KernelError(
                        "the file became shorter while it was read", remedy="seal again"
                    )
                done, at = done + got, at + got
    return view[:at]


def _each(work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT]:
    """Yield what `work` returns for each job, in order; several run at once, and few wait. The first error ends it."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="fdbox-image") as pool:
        waiting: deque[Future[ResultT]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) > 4 * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
