"""How fast does memory become an image, and memory again? Seconds for the same bytes by every way that the kernel has.

The floor writes as many bytes past the page cache (O_DIRECT) from four threads, and does nothing else. The peers move
them without looking at them: splice(2) through a pipe, sendfile(2), write(2) through the page cache (copy_file_range(2)
does not go from memory to a disk: EXDEV). All end with fsync(2). Ours hashes every byte, and may compress; reading
checks every byte.

    python benchmarks/image.py [FOLDER [MIB]]
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import ratio, rounds

from fdbox.handover.carriers import chunks, imagefile
from fdbox.linux import files, memfd
from fdbox.linux.fd import OwnedFd
from fdbox.ports import Parcel

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 4 << 20
ROUNDS = 5


def filled(size: int, *, compressible: bool) -> OwnedFd:
    """Return memory that zstd can make nothing of, or three times smaller."""
    fd = memfd.create("bench", size)
    chance = random.Random(size)
    piece = chance.randbytes(PIECE)
    if compressible:
        words = [chance.randbytes(8) for _ in range(600)]
        piece = b"".join(chance.choice(words) for _ in range(PIECE // 8))
    for offset in range(0, size, PIECE):
        os.pwrite(fd.fileno(), piece, offset)
    return fd


def timed(path: Path, write: Callable[[int], None], *, direct: bool = False) -> float:
    """Return the seconds that writing a file takes, until it is safe."""
    path.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    opened = files.open_direct(path, flags) if direct else OwnedFd(os.open(path, flags, 0o600))
    begun = time.perf_counter()
    with opened as fd:
        write(fd.fileno())
        os.fsync(fd.fileno())
    return time.perf_counter() - begun


class Ways:
    """Every way to write `size` bytes of a memory to a file."""

    def __init__(self, source: int, size: int) -> None:
        self.source = source
        self.size = size
        self.offsets = range(0, size, PIECE)
        self.blank = mmap.mmap(-1, PIECE)
        self.blank[:] = os.urandom(PIECE)

    def floor(self, fd: int) -> None:
        with ThreadPoolExecutor(chunks.THREADS) as pool:
            for _ in pool.map(lambda at: os.pwrite(fd, self.blank, at), self.offsets):
                pass

    def sendfile(self, fd: int) -> None:
        done = 0
        while done < self.size:
            done += os.sendfile(fd, self.source, done, self.size - done)

    def splice(self, fd: int) -> None:
        reading, writing = os.pipe()
        for at in range(0, self.size, 65536):
            moved = os.splice(self.source, writing, 65536, offset_src=at)
            while moved:
                moved -= os.splice(reading, fd, moved)
        for end in (reading, writing):
            OwnedFd(end).close()

    def write(self, fd: int) -> None:
        for at in self.offsets:
            os.pwrite(fd, os.pread(self.source, PIECE, at), at)

    def image(self, fd: int) -> None:
        imagefile.write(fd, [Parcel(self.source, 1, [(0, self.size)])])

    def runs(self, path: Path) -> dict[str, Callable[[], float]]:
        return {
            "floor": lambda: timed(path, self.floor, direct=True),
            "sendfile": lambda: timed(path, self.sendfile),
            "splice": lambda: timed(path, self.splice),
            "write": lambda: timed(path, self.write),
            "image": lambda: timed(path, self.image, direct=True),
            "check": lambda: check(self.source, self.size),
            "read": lambda: read(path),
        }


def check(source: int, size: int) -> float:
    """Return the seconds that comparing everything takes, right before the jump."""
    begun = time.perf_counter()
    for _ in chunks.checksums(chunks.cut(source, [(0, size)])):
        pass
    return time.perf_counter() - begun


def read(path: Path) -> float:
    """Return the seconds until an image is memory again."""
    begun = time.perf_counter()
    with files.open_direct(path, os.O_RDONLY) as fd:
        imagefile.to_memory(imagefile.read(fd.fileno())[1], "again").close()
    return time.perf_counter() - begun


def measure(size: int, path: Path, *, compressible: bool) -> None:
    with filled(size, compressible=compressible) as source:
        runs = Ways(source.fileno(), size).runs(path)
        runs["image"]()
        stored = path.stat().st_size
        # `read` comes last in a round, and reads what was written last: an image
        order = ("floor", "sendfile", "splice", "write", "check", "image", "read")
        found = rounds({name: runs[name] for name in order}, ROUNDS)
    what = "compressible" if compressible else "random"
    print(f"{size >> 20} MiB, {what}: the image has {stored >> 20} MiB")
    for way, seconds in found.items():
        speed = size / statistics.median(seconds) / (1 << 20)
        print(
            f"  {way:10}{speed:8.0f} MiB/s   {ratio(seconds, found['floor'])} of the floor's time"
        )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()
    size = (int(sys.argv[2]) if len(sys.argv) > 2 else 512) << 20
    with tempfile.TemporaryDirectory(dir=folder) as made:
        for compressible in (False, True):
            measure(size, Path(made) / "file", compressible=compressible)


main()
