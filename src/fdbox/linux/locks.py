"""Locks of an open file description: flock(2), and OFD locks in fcntl(2). Those of processes are not among them."""

from __future__ import annotations

import fcntl
import struct
from typing import TYPE_CHECKING, NamedTuple

from fdbox.linux import fdinfo

if TYPE_CHECKING:
    from collections.abc import Iterator

_F_OFD_SETLK = 37  # include/uapi/asm-generic/fcntl.h
_FLOCK = struct.Struct(
    "=hh4xqqi4x"
)  # struct flock { short l_type, l_whence; off_t l_start, l_len; pid_t l_pid; }
_TYPES = {"FLOCK": "flock", "OFDLCK": "ofd"}
#: what l_len 0 means: to the end, however far that moves
TO_THE_END = 0


class Lock(NamedTuple):
    """One lock; `start` and `length` in bytes, `length` 0 to the end; a flock is of the whole file."""

    kind: str
    exclusive: bool
    start: int = 0
    length: int = TO_THE_END


def held_by(fd: int) -> list[Lock]:
    """Return the locks of a borrowed descriptor's open file description. KernelError EBADF."""
    return list(_parsed(fdinfo.read(fd).extra.get("lock", "")))


def _parsed(text: str) -> Iterator[Lock]:
    # "1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF" (fs/locks.c: lock_get_status)
    for line in text.splitlines():
        _, kind, _, access, _, _, start, end = line.split()[:8]
        if kind in _TYPES:
            length = TO_THE_END if end == "EOF" else int(end) - int(start) + 1
            yield Lock(_TYPES[kind], access == "WRITE", int(start), length)


def has_lease(fd: int) -> bool:
    """Return whether there is a lease (F_SETLEASE) on the open file description. KernelError EBADF."""
    return "LEASE" in fdinfo.read(fd).extra.get("lock", "")


def take(fd: int, lock: Lock) -> None:
    """Take a lock without waiting. OSError: BlockingIOError where somebody else has it, EBADF (opened for the wrong access)."""
    if lock.kind == "flock":
        fcntl.flock(fd, (fcntl.LOCK_EX if lock.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        return
    kind = fcntl.F_WRLCK if lock.exclusive else fcntl.F_RDLCK
    fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(kind, 0, lock.start, lock.length, 0))
