"""Whether two descriptors are one open file (kcmp(2): KCMP_FILE, KCMP_EPOLL_TFD)."""

from __future__ import annotations

import errno
import os
import struct

from fdbox.errors import KernelError
from fdbox.linux.syscalls import syscall

_KCMP_FILE = 0
_KCMP_EPOLL_TFD = 7
_SLOT = struct.Struct("=III")  # struct kcmp_epoll_slot { __u32 efd, tfd, toff; }
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
    return _compare(_KCMP_FILE, fd1, fd2, f"descriptors {fd1} and {fd2}")


def order_watched(fd: int, epoll: int, number: int, offset: int) -> int:
    """Return how `fd` sorts against a file that an epoll watches, as `order` does.

    Args:
        fd: A borrowed descriptor.
        epoll: A borrowed epoll.
        number: The descriptor number that the file was added under, in whatever process.
        offset: Which of the items of that number, from 0: numbers are used again.

    Raises:
        KernelError: EBADF, ENOSYS, EPERM, ENOENT (there is no such item).
    """
    slot = _SLOT.pack(epoll, number, offset)
    return _compare(_KCMP_EPOLL_TFD, fd, slot, f"descriptor {fd} and number {number} of an epoll")


def same_file(fd1: int, fd2: int) -> bool:
    """Return whether both share one open file description; errors as `order`."""
    return order(fd1, fd2) == 0


def _compare(kind: int, fd: int, other: int | bytes, what: str) -> int:
    pid = os.getpid()
    try:
        return syscall("kcmp", pid, pid, kind, fd, other)
    except OSError as error:
        code = error.errno or 0
        raise KernelError(
            f"cannot compare {what}: {error.strerror}", errno=code, remedy=_REMEDIES.get(code)
        ) from error
