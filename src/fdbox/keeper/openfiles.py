"""Open file descriptions, each once: which of many descriptors share one.

Sorted by kcmp(2), which compares pointers and never asks a file system: what fstat(2) says of somebody else's descriptor may
be an error, or a lie, or not come at all.
"""

from __future__ import annotations

from fdbox.errors import KernelError
from fdbox.linux import kcmp


class OpenFiles:
    """A set of borrowed descriptors in which every open file description is once; found in log n comparisons.

    Where kcmp(2) cannot be asked no two are the same. A descriptor should stay open as long as it is in here.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._sorted: list[int] = []

    def find(self, fd: int) -> int | None:
        """Return the descriptor in here that shares the open file of `fd`."""
        at, found = self._place(fd)
        return self._sorted[at] if found else None

    def add(self, fd: int) -> None:
        """Take a descriptor in whose open file `find` does not find."""
        self._sorted.insert(self._place(fd)[0], fd)

    def discard(self, fd: int, successor: int | None = None) -> None:
        """Let go of a descriptor that is in here; `successor`, of the same open file, takes its place."""
        at, found = self._place(fd)
        if not found or self._sorted[at] != fd:  # it is closed already
            at = self._sorted.index(fd)
        self._sorted[at : at + 1] = [] if successor is None else [successor]

    def _place(self, fd: int) -> tuple[int, bool]:
        """Return where a descriptor is or belongs, and whether its open file is there."""
        low, high = 0, len(self._sorted)
        while low < high:
            middle = (low + high) // 2
            try:
                found = kcmp.order(fd, self._sorted[middle])
            except KernelError:
                return high, False
            if found == 0:
                return middle, True
            low, high = (low, middle) if found == 1 else (middle + 1, high)
        return low, False
