"""Descriptors over Unix sockets: SCM_RIGHTS (unix(7), cmsg(3))."""

from __future__ import annotations

import array
import socket
from typing import TYPE_CHECKING

from fdbox.errors import KernelError
from fdbox.linux.fd import OwnedFd, close_all

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_FDS = 253  # SCM_MAX_FD, include/net/scm.h
# Plain integers: the arithmetic of Python's enums costs more than a system call.
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_CTRUNC = int(socket.MSG_CTRUNC)
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_RIGHTS = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_ROOM = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class TruncatedDescriptors(KernelError):
    """Raised when some of the descriptors sent did not arrive (MSG_CTRUNC); the others were closed."""

    remedy = "raise the limit on open descriptors (RLIMIT_NOFILE), then connect again"


def send_with_fds(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    """Return how many bytes one sendmsg(2) took; `fds` go with the first of them.

    Args:
        sock: A Unix socket.
        data: At least one byte where there are `fds`: an empty stream send loses them.
        fds: At most `MAX_FDS`, borrowed.

    Raises:
        ValueError: descriptors without data, or too many of them.
        OSError: BlockingIOError if the socket is full; ETOOMANYREFS if too many descriptors are in flight;
            EBADF; BrokenPipeError.
    """
    if fds and not data:
        raise ValueError("descriptors need at least one byte to go with")
    if len(fds) > MAX_FDS:
        raise ValueError(f"{len(fds)} descriptors; a message carries at most {MAX_FDS}")
    rights = [(*_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], rights, _NOSIGNAL)


def receive_with_fds(sock: socket.socket, size: int) -> tuple[bytes, list[OwnedFd]]:
    """Return up to `size` bytes and the descriptors that came with them, close-on-exec.

    Raises:
        TruncatedDescriptors: not all of them fit; those that did are closed.
        OSError: BlockingIOError if there is nothing yet; ConnectionResetError.
    """
    data, control, got, _ = sock.recvmsg(size, _ROOM, _CLOEXEC)
    fds = [OwnedFd(number) for number in _descriptors(control)]
    if got & _CTRUNC:
        close_all(fds)
        raise TruncatedDescriptors(f"a message lost descriptors; {len(fds)} came and were closed")
    return data, fds


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, content in control:
        if (level, kind) == _RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return found.tolist()


def peek(sock: socket.socket, size: int) -> bytes:
    """Return up to `size` bytes that wait in the socket, and leave them there.

    Never blocks. Without room for control data on purpose: a peek that has it duplicates the descriptors.
    b"" is the end of the stream; BlockingIOError if there is nothing yet.
    """
    return sock.recv(size, _PEEK)
