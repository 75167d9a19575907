"""Sets of watched files (epoll(7), fs/eventpoll.c), with the 64 bits of user data that Python's own epoll hides."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import NamedTuple

from fdbox.errors import KernelError
from fdbox.linux import fdinfo
from fdbox.linux.fd import OwnedFd
from fdbox.linux.syscalls import last_error, libc

_CTL_ADD, _CTL_MOD = 1, 3
# include/uapi/linux/eventpoll.h
ONESHOT = 1 << 30
#: what is left of the events of a ONESHOT item that has reported once: EPOLLWAKEUP, ONESHOT, EPOLLET, EPOLLEXCLUSIVE
PRIVATE_BITS = 1 << 29 | ONESHOT | 1 << 31 | 1 << 28
# struct epoll_event { __poll_t events; __u64 data; } EPOLL_PACKED: packed on x86-64 only
_EVENT = struct.Struct("=IQ" if platform.machine() == "x86_64" else "=I4xQ")
_REMEDIES = {
    errno.EBADF: "raise RLIMIT_NOFILE: the item was added under a descriptor number above it",
    errno.ENOSPC: "raise fs.epoll.max_user_watches",
    errno.ELOOP: "epolls may not watch each other in a circle",
    errno.EPERM: "a file of this kind cannot be watched",
}


class Item(NamedTuple):
    """One watched file: the number of its descriptor when it was added, events (EPOLL*), user data, and its inode."""

    fd: int
    events: int
    data: int
    device: int
    inode: int


def create() -> OwnedFd:
    """Return an empty epoll, close-on-exec; KernelError EMFILE, ENFILE, ENOMEM."""
    fd = int(libc.epoll_create1(os.O_CLOEXEC))
    if fd < 0:
        raise _failed("cannot create an epoll")
    return OwnedFd(fd)


def items(fd: int) -> list[Item]:
    """Return what a borrowed epoll watches, in the kernel's order. KernelError EBADF."""
    return [_parsed(line) for line in fdinfo.read(fd).extra.get("tfd", "").splitlines()]


def _parsed(line: str) -> Item:
    # "5 events:       19 data:                5  pos:0 ino:412 sdev:f" (ep_show_fdinfo), but for the number all in hex
    words = line.replace(":", " ").split()
    told = dict(zip(words[1::2], words[2::2], strict=True))
    return Item(
        int(words[0]),
        int(told["events"], 16),
        int(told["data"], 16),
        fdinfo.device(int(told["sdev"], 16)),
        int(told["ino"], 16),
    )


def add(epoll: int, fd: int, events: int, data: int) -> None:
    """Watch a file; KernelError EEXIST, ENOSPC, ELOOP, EPERM, EBADF."""
    _control(epoll, _CTL_ADD, fd, events, data)


def modify(epoll: int, fd: int, events: int, data: int) -> None:
    """Watch a file for something else; KernelError ENOENT (it was added under another number), EINVAL."""
    _control(epoll, _CTL_MOD, fd, events, data)


def _control(epoll: int, operation: int, fd: int, events: int, data: int) -> None:
    if libc.epoll_ctl(epoll, operation, fd, _EVENT.pack(events, data)) != 0:
        raise _failed(f"cannot watch descriptor {fd}")


def wait(epoll: int, most: int = 64) -> list[tuple[int, int]]:
    """Return (events, data) of what is ready now. KernelError EBADF, EINVAL."""
    buffer = ctypes.create_string_buffer(_EVENT.size * most)
    count = int(libc.epoll_wait(epoll, buffer, most, 0))
    if count < 0:
        raise _failed("cannot ask the epoll")
    return [_EVENT.unpack_from(buffer.raw, number * _EVENT.size) for number in range(count)]


def _failed(what: str) -> KernelError:
    error = last_error()
    code = error.errno or 0
    return KernelError(f"{what}: {error.strerror}", errno=code, remedy=_REMEDIES.get(code))
