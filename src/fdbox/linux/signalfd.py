"""Signals as something to read: signalfd(2). Blocked signals are never lost, not even over an execve(2)."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from typing import TYPE_CHECKING

from fdbox.linux import fdinfo
from fdbox.linux.fd import OwnedFd
from fdbox.linux.syscalls import last_error, libc

if TYPE_CHECKING:
    from collections.abc import Collection

_SIGSET_SIZE = 128  # sigset_t of glibc and musl
_INFO = struct.Struct(
    "=I124x"
)  # struct signalfd_siginfo, include/uapi/linux/signalfd.h: ssi_signo, and what we do not need


def block(signals: Collection[signal.Signals]) -> OwnedFd:
    """Block signals for this thread, and return a descriptor that is readable while one of them is pending.

    For a process with one thread: another one would still take them.

    OSError: EMFILE, ENFILE, ENOMEM.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    return create(sum(1 << (number - 1) for number in signals), os.O_NONBLOCK)


def create(mask: int, flags: int = 0) -> OwnedFd:
    """Return a descriptor for the signals of a mask, close-on-exec: bit 0 is signal 1. `flags` may have O_NONBLOCK.

    OSError: EMFILE, ENFILE, ENOMEM.
    """
    # The kernel's sigset_t is the first 64 bits of the C library's; sigaddset() would refuse the library's own signals.
    signals = mask.to_bytes(8, sys.byteorder) + bytes(_SIGSET_SIZE - 8)
    flags |= os.O_CLOEXEC  # SFD_CLOEXEC and SFD_NONBLOCK have the values of the O_* flags
    opened = int(libc.signalfd(ctypes.c_int(-1), signals, ctypes.c_int(flags)))
    if opened < 0:
        raise last_error()
    return OwnedFd(opened)


def mask_of(fd: int) -> int:
    """Return the mask of a signalfd, as `create` takes it; KernelError if it is none."""
    return int(fdinfo.read(fd).line("sigmask"), 16)


def read(fd: int) -> list[signal.Signals]:
    """Return the signals that are pending, each once, and take them; an empty list if there is none."""
    try:
        content = os.read(fd, 64 * _INFO.size)
    except BlockingIOError:
        return []
    return [signal.Signals(number) for (number,) in _INFO.iter_unpack(content)]
