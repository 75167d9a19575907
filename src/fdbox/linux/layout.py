"""How memory lies: its pages, how many of them are of huge ones, and how many pieces that are physically.

Sources: Documentation/admin-guide/mm/pagemap.rst. Holes stay holes: only data is looked at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import KernelError
from fdbox.linux import memfd, pagemap
from fdbox.linux.fd import OwnedFd, open_path
from fdbox.linux.mapping import HUGE, Mapping

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PAGE = 4096
_KHO = Path("/sys/kernel/debug/kho/out")
_PER_HUGE = HUGE // PAGE
#: mapped at once
_WINDOW = 64 << 20
_KPF_THP = 1 << 22  # include/uapi/linux/kernel-page-flags.h
_FLAGS_SIZE = 8


class Layout(NamedTuple):
    """What one or more memories are made of; `runs` None: this process may not see where pages are.

    `movable` pages lie where the next kernel starts (KHO scratch), and are moved away when they are preserved.
    """

    pages: int = 0
    huge: int = 0
    runs: int | None = 0
    movable: int = 0

    def plus(self, other: Layout) -> Layout:
        """Return both together. Where one's last page lies right before the other's first is not looked at."""
        hidden = self.runs is None or other.runs is None
        runs = None if hidden else (self.runs or 0) + (other.runs or 0)
        return Layout(
            self.pages + other.pages,
            self.huge + other.huge,
            runs,
            self.movable + other.movable,
        )

    @property
    def folios(self) -> int:
        """How many pieces the kernel handles one by one: huge pages, and other pages."""
        return self.pages - self.huge * (_PER_HUGE - 1)


def scratch() -> list[range] | None:
    """Return the frames that Kexec HandOver keeps for the next kernel, area by area; None if they are not to be seen."""
    try:
        starts, lengths = (_numbers(_KHO / name) for name in ("scratch_phys", "scratch_len"))
    except OSError:
        return None
    pairs = zip(starts, lengths, strict=False)
    return [range(start // PAGE, (start + length) // PAGE) for start, length in pairs]


def _numbers(path: Path) -> list[int]:
    return [int(word, 0) for word in path.read_text(encoding="ascii").split()]


def survey(fd: int) -> Layout:
    """Return how a memory lies that this process may read (a memfd, a file of tmpfs); KernelError if it cannot be read."""
    found, areas = Layout(), scratch()
    with memfd.reopen(fd, os.O_RDONLY) as own, _Flags() as flags:
        for start, length in _windows(own.fileno()):
            pieces = _frames(own.fileno(), start, length)
            if pieces is None:
                pages = sum(length for _, length in memfd.data_extents(own.fileno())) // PAGE
                return Layout(pages, 0, None)
            frames = [frame for piece in pieces for frame in piece]
            huge = sum(_is_huge(piece, flags) for piece in pieces)
            movable = sum(frame in area for area in areas or () for frame in frames)
            found = found.plus(Layout(len(frames), huge, pagemap.runs(frames), movable))
    return found


def _frames(fd: int, start: int, length: int) -> list[list[int]] | None:
    """Return the frame numbers of each huge page's range in a part of a file; None where they are hidden."""
    found = []
    with Mapping(fd, start, length) as mapped:
        for at in range(0, length, HUGE):
            size = min(HUGE, length - at)
            if _fill(mapped, fd, start, at, size):
                try:
                    found.append(pagemap.frames(mapped.address + at, size))
                except KernelError:  # no CAP_SYS_ADMIN
                    return None
    return found


def _windows(fd: int) -> Iterator[tuple[int, int]]:
    """Yield parts of a file that have data, each from a multiple of a huge page on."""
    end = 0
    for start, length in memfd.data_extents(fd):
        at = max(end, start // HUGE * HUGE)
        while at < start + length:
            size = min(_WINDOW, -(-(start + length - at) // PAGE) * PAGE)
            yield at, size
            end = at + -(-size // HUGE) * HUGE
            at = end


def _fill(mapped: Mapping, fd: int, start: int, at: int, length: int) -> bool:
    """Fill the page tables where the file has data; return whether it has."""
    filled = False
    for piece, size in extents_within(fd, start + at, length):
        filled |= mapped.populate(piece - start, size)
    return filled


def extents_within(fd: int, start: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what is not a hole within a range, in whole pages. `fd` is of its own: it is moved."""
    at, end = start, start + length
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: none from here on
            return
        if data >= end:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        first = data // PAGE * PAGE
        yield first, -(-hole // PAGE) * PAGE - first
        at = hole


class _Flags:
    """/proc/kpageflags, if it can be read."""

    def __init__(self) -> None:
        try:
            self._file: OwnedFd | None = open_path("/proc/kpageflags", os.O_RDONLY)
        except OSError:
            self._file = None

    def of(self, frame: int) -> int:
        """Return the KPF_* of a frame; 0 where they are hidden."""
        if self._file is None:
            return 0
        return int.from_bytes(
            os.pread(self._file.fileno(), _FLAGS_SIZE, frame * _FLAGS_SIZE), "little"
        )

    def __enter__(self) -> _Flags:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _is_huge(frames: Sequence[int], flags: _Flags) -> bool:
    if len(frames) != _PER_HUGE:
        return False
    first = frames[0]
    if first % _PER_HUGE or frames[-1] != first + _PER_HUGE - 1:
        return False
    return bool(flags.of(first) & _KPF_THP)


def may_collapse(fd: int) -> Iterator[int]:
    """Yield where each huge page's range begins that has hardly a hole, and is not of a huge page already.

    `fd` is of its own: it is moved.
    """
    size = os.fstat(fd).st_size
    with _Flags() as flags:
        for start in range(0, size // HUGE * HUGE, HUGE):
            held = sum(length for _, length in extents_within(fd, start, HUGE))
            if held < HUGE - HUGE // 8:
                continue
            with Mapping(fd, start, HUGE) as mapped:
                _fill(mapped, fd, start, 0, HUGE)
                try:
                    frames = pagemap.frames(mapped.address, HUGE)
                except KernelError:
                    frames = []
            if not frames or not _is_huge(frames, flags):
                yield start


def collapse(fd: int, start: int) -> int:
    """Put the pages of one huge page's range together, in place; return 0 or the errno."""
    with Mapping(fd, start, HUGE) as mapped:
        return mapped.collapse(0)
