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
