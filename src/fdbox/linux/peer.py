"""Who is at the other end of a Unix socket (unix(7))."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from fdbox.errors import KernelError
from fdbox.linux.fd import OwnedFd

SO_PEERPIDFD = 77  # include/uapi/asm-generic/socket.h, Linux 6.5
_UCRED = struct.Struct("=iII")  # struct ucred { pid_t pid; uid_t uid; gid_t gid; }


class PeerGone(KernelError):
    """Raised when the process that connected has ended and was reaped."""

    remedy = "close the connection: there is nobody to answer"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Process, user and group at the time of connect(2) or listen(2)."""

    pid: int
    uid: int
    gid: int


def credentials(sock: socket.socket) -> Credentials:
    """Return who connected (SO_PEERCRED); OSError if it is no connected Unix socket."""
    content = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Credentials(*_UCRED.unpack(content))


def pidfd(sock: socket.socket) -> OwnedFd | None:
    """Return a pidfd of who connected, or None on a kernel (< 6.5) that has none.

    Raises:
        PeerGone: the process is no more (ESRCH; ENODATA: it never was a process; EINVAL: before 6.16, reaped).
        OSError: it is no connected Unix socket.
    """
    try:
        return OwnedFd(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        if error.errno in (errno.ESRCH, errno.ENODATA, errno.EINVAL):
            raise PeerGone("the peer has ended", errno=error.errno) from error
        raise
