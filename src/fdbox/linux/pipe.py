"""Pipes (pipe(7), tee(2), F_GETPIPE_SZ in fcntl(2))."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from fdbox.errors import KernelError
from fdbox.linux.fd import OwnedFd
from fdbox.linux.syscalls import last_error, libc

_SPLICE_F_NONBLOCK = 0x02  # include/linux/splice.h
#: F_SETPIPE_SZ takes no more (fs/pipe.c: round_pipe_size)
MAX_CAPACITY = 1 << 31

libc.tee.restype = ctypes.c_ssize_t


def create(flags: int = 0) -> tuple[OwnedFd, OwnedFd]:
    """Return the reading and the writing end of a new pipe, close-on-exec; OSError EMFILE, ENFILE."""
    reading, writing = os.pipe2(flags | os.O_CLOEXEC)
    return OwnedFd(reading), OwnedFd(writing)


def capacity(fd: int) -> int:
    """Return how many bytes a pipe can hold (F_GETPIPE_SZ); OSError EBADF."""
    return int(fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ))


def set_capacity(fd: int, size: int) -> None:
    """Set how many bytes a pipe can hold (F_SETPIPE_SZ).

    Raises:
        KernelError: EPERM (over /proc/sys/fs/pipe-max-size or the user's share of pipe pages), EBUSY (it holds more), ENOMEM.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError as error:
        raise KernelError(
            f"cannot make a pipe for {size} bytes: {error.strerror}",
            errno=error.errno or 0,
            remedy="raise fs.pipe-max-size and fs.pipe-user-pages-soft, or run as root",
        ) from error


def tee(source: int, target: int, length: int) -> int:
    """Return how many bytes of one pipe are now in another, too; nothing is taken, packets stay packets, nothing blocks.

    OSError: EINVAL if one is no pipe. 0 if there is nothing, or no room.
    """
    done = int(libc.tee(source, target, ctypes.c_size_t(length), _SPLICE_F_NONBLOCK))
    if done >= 0:
        return done
    error = last_error()
    if error.errno == errno.EAGAIN:
        return 0
    raise error
