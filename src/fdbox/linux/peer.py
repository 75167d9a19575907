"""Who is at the other end of a Unix socket (unix(7))."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_UCRED = struct.Struct("=iII")  # struct ucred { pid_t pid; uid_t uid; gid_t gid; }


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


def listener(path: Path) -> Credentials:
    """Return who listens at a path: the process that called listen(2), which may be no more; OSError if nobody does.

    Of a process in a pid namespace that is not seen from here the pid is 0.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(os.fspath(path))
        return credentials(sock)
