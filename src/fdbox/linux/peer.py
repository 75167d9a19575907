"""Who is at the other end of a Unix socket (unix(7))."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_UCRED = struct.Struct("=iII")  # struct ucred { pid_t pid; uid_t uid; gid_t gid; }
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """Process, user and group of who connected (SO_PEERCRED), or of who sent something (SCM_CREDENTIALS)."""

    pid: int
    uid: int
    gid: int


def credentials(sock: socket.socket) -> Credentials:
    """Return who connected (SO_PEERCRED); OSError if it is no connected Unix socket."""
    content = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Credentials(*_UCRED.unpack(content))


def answerer(path: Path, question: bytes) -> Credentials:
    """Return which process answers a question at a path; OSError if none does within ten seconds.

    SO_PEERCRED would tell who called listen(2): with socket activation, or after an upgrade, another, which may be no more.
    So this asks for the answer's own credentials (SO_PASSCRED). Of a process in a pid namespace that is not seen from here the
    pid is 0.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.connect(os.fspath(path))
        sock.sendall(question)
        answer, control, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(_UCRED.size))
    if not answer:  # which has credentials, too, of nobody
        raise ConnectionResetError(errno.ECONNRESET, f"{path} does not answer")
    ((_, _, content),) = control
    return Credentials(*_UCRED.unpack(content))
