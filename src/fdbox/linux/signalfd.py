"""Signals as something to read: signalfd(2). Blocked signals are never lost, not even over an execve(2)."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import TYPE_CHECKING

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
    mask = ctypes.create_string_buffer(_SIGSET_SIZE)
    libc.sigemptyset(mask)
    for number in signals:
        libc.sigaddset(mask, ctypes.c_int(number))
    flags = os.O_CLOEXEC | os.O_NONBLOCK  # SFD_CLOEXEC and SFD_NONBLOCK have their values
    opened = int(libc.signalfd(ctypes.c_int(-1), mask, ctypes.c_int(flags)))
    if opened < 0:
        raise last_error()
    return OwnedFd(opened)


def read(fd: int) -> list[signal.Signals]:
    """Return the signals that are pending, each once, and take them; an empty list if there is none."""
    try:
        content = os.read(fd, 64 * _INFO.size)
    except BlockingIOError:
        return []
    return [signal.Signals(number) for (number,) in _INFO.iter_unpack(content)]
