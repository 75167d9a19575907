"""Whether two descriptors are one open file (kcmp(2), KCMP_FILE)."""

from __future__ import annotations

import errno
import os

from fdbox.errors import KernelError
from fdbox.linux.syscalls import syscall

_KCMP_FILE = 0
_REMEDIES = {
    errno.ENOSYS: "the kernel needs CONFIG_KCMP (or CONFIG_CHECKPOINT_RESTORE)",
    errno.EPERM: "a seccomp filter or security module forbids kcmp(2): allow it",
    errno.EBADF: "pass open descriptors",
}


def order(fd1: int, fd2: int) -> int:
    """Return 0 for the same open file, 1 if `fd1` sorts before `fd2`, 2 if after.

    The order is arbitrary but total while both are open, so many descriptors can be sorted by it.

    Raises:
        KernelError: EBADF, ENOSYS, EPERM.
    """
    pid = os.getpid()
    try:
        return syscall("kcmp", pid, pid, _KCMP_FILE, fd1, fd2)
    except OSError as error:
        code = error.errno or 0
        raise KernelError(
            f"cannot compare descriptors {fd1} and {fd2}: {error.strerror}",
            errno=code,
            remedy=_REMEDIES.get(code),
        ) from error


def same_file(fd1: int, fd2: int) -> bool:
    """Return whether both share one open file description; errors as `order`."""
    return order(fd1, fd2) == 0


class OpenFiles:
    """A set of borrowed descriptors in which every open file description is once; found in log n comparisons.

    Where kcmp(2) cannot be asked no two are the same. A descriptor must stay open as long as it is in here.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._by_inode: dict[tuple[int, int], list[int]] = {}

    def find(self, fd: int) -> int | None:
        """Return the descriptor in here that shares the open file of `fd`; OSError if it is not open."""
        bucket = self._by_inode.get(_inode(fd), [])
        at, found = _place(bucket, fd)
        return bucket[at] if found else None

    def add(self, fd: int) -> None:
        """Take a descriptor in whose open file `find` does not find."""
        bucket = self._by_inode.setdefault(_inode(fd), [])
        bucket.insert(_place(bucket, fd)[0], fd)

    def discard(self, fd: int, successor: int | None = None) -> None:
        """Let go of a descriptor that is in here; `successor`, of the same open file, takes its place."""
        inode = _inode(fd)
        bucket = self._by_inode[inode]
        at = bucket.index(fd)
        if successor is not None:
            bucket[at] = successor
            return
        del bucket[at]
        if not bucket:
            del self._by_inode[inode]


def _inode(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _place(bucket: list[int], fd: int) -> tuple[int, bool]:
    """Return where in a sorted bucket a descriptor is or belongs, and whether its open file is there."""
    low, high = 0, len(bucket)
    while low < high:
        middle = (low + high) // 2
        try:
            found = order(fd, bucket[middle])
        except KernelError:
            return high, False
        if found == 0:
            return middle, True
        low, high = (low, middle) if found == 1 else (middle + 1, high)
    return low, False
