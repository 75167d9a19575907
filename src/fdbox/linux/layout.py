"""How memory lies: its pages, how many of them are of huge ones, and how many pieces that are physically.

Sources: Documentation/admin-guide/mm/pagemap.rst. Holes stay holes: only data is looked at.
"""

from __future__ import annotations

import itertools
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
#: mapped at once, and a multiple of a huge page
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
        parts = list(_parts(own.fileno()))
        for _, window in itertools.groupby(parts, lambda part: part[0] // _WINDOW):
            try:
                pieces = _frames(own.fileno(), list(window))
            except KernelError:  # no CAP_SYS_ADMIN
                return Layout(sum(length for _, length in parts) // PAGE, 0, None)
            frames = [frame for piece in pieces for frame in piece]
            huge = sum(_is_huge(piece, flags) for piece in pieces)
            movable = sum(frame in area for area in areas or () for frame in frames)
            found = found.plus(Layout(len(frames), huge, pagemap.runs(frames), movable))
    return found


def _parts(fd: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what is not a hole, in whole pages, cut where huge pages begin.

    The kernel goes through a memory page by page to find the end of what is no hole: so it is asked once for all of it.
    """
    for start, length in memfd.data_extents(fd):
        at, end = start // PAGE * PAGE, -(-(start + length) // PAGE) * PAGE
        while at < end:
            size = min(end, at // HUGE * HUGE + HUGE) - at
            yield at, size
            at += size


def _frames(fd: int, parts: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the frame numbers of each huge page's range that has parts, which lie close together; KernelError: EPERM."""
    first, (last, size) = parts[0][0] // HUGE * HUGE, parts[-1]
    ranges = sorted({at // HUGE * HUGE for at, _ in parts})
    with Mapping(fd, first, last + size - first) as mapped:
        for at, length in parts:
            mapped.populate(at - first, length)
        return [
            pagemap.frames(mapped.address + at - first, min(HUGE, last + size - at))
            for at in ranges
        ]


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
    """Yield where each huge page's range begins that has hardly a hole, and is not of a huge page already."""
    size = os.fstat(fd).st_size
    with _Flags() as flags:
        for number, pieces in itertools.groupby(_parts(fd), lambda part: part[0] // HUGE):
            start, parts = number * HUGE, list(pieces)
            held = sum(length for _, length in parts)
            if held < HUGE - HUGE // 8 or start + HUGE > size:
                continue
            try:
                (frames,) = _frames(fd, parts)
            except KernelError:
                frames = []
            if not _is_huge(frames, flags):
                yield start


def collapse(fd: int, start: int) -> int:
    """Put the pages of one huge page's range together, in place; return 0 or the errno."""
    with Mapping(fd, start, HUGE) as mapped:
        return mapped.collapse(0)
