"""The service manager's protocol: sd_notify(3) with descriptors, and sd_listen_fds(3).

A datagram has one assignment a line (FDSTORE=1, FDNAME=..., BARRIER=1) and descriptors beside it. Who is started with
LISTEN_FDS=n has descriptors 3 to 2+n, named by LISTEN_FDNAMES, if LISTEN_PID is its own pid.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fdbox.linux import scm
from fdbox.linux.fd import OwnedFd
from fdbox.linux.spawn import FIRST

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

MAX_NAME = 255
_MAX_MESSAGE = 4096  # what systemd reads of one (NOTIFY_BUFFER_MAX)
_CREDENTIALS = struct.Struct("=iII")
# Plain integers: the arithmetic of Python's enums costs more than a system call.
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_RIGHTS = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_SENDER = (int(socket.SOL_SOCKET), int(socket.SCM_CREDENTIALS))
_ROOM = socket.CMSG_SPACE(scm.MAX_FDS * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)


class Message(NamedTuple):
    """One datagram: its assignments, its descriptors, and the process that sent it (as the kernel says)."""

    fields: dict[str, str]
    descriptors: list[OwnedFd]
    sender: int


def listen() -> socket.socket:
    """Return a socket for NOTIFY_SOCKET, at an abstract address that the kernel chooses; `address` tells it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sock.bind("")
    return sock


def listen_privately() -> socket.socket:
    """Return a socket for NOTIFY_SOCKET in a folder of its own, which only this user can enter; `forget` it in the end."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "/run")
    where = runtime if os.access(runtime, os.W_OK) else None
    sock.bind(f"{tempfile.mkdtemp(prefix='fdbox-keeper-', dir=where)}/notify")
    return sock


def forget(sock: socket.socket) -> None:
    """Close a socket that `listen_privately` made, and remove its folder."""
    path = Path(address(sock))
    sock.close()
    with contextlib.suppress(OSError):  # somebody else has tidied up
        path.unlink()
        path.parent.rmdir()


def address(sock: socket.socket) -> str:
    """Return what NOTIFY_SOCKET has to be for a socket that one of these made."""
    name: bytes | str = sock.getsockname()
    return name if isinstance(name, str) else "@" + name[1:].decode("ascii")


def adopt(number: int) -> socket.socket:
    """Return the socket that `listen` made in this process, before it became another program."""
    sock = socket.socket(fileno=number)
    sock.set_inheritable(False)
    return sock


def connect(notify_socket: str) -> socket.socket:
    """Return a socket that sends to NOTIFY_SOCKET and does not block; OSError if nobody is there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect("\0" + notify_socket[1:] if notify_socket.startswith("@") else notify_socket)
    except BaseException:
        sock.close()
        raise
    return sock


def send(sock: socket.socket, fields: Mapping[str, str], fds: Sequence[int] = ()) -> None:
    """Send one datagram, whole or not at all; OSError as `scm.send_with_fds` (BlockingIOError: its queue is full)."""
    text = "\n".join(f"{key}={value}" for key, value in fields.items())
    scm.send_with_fds(sock, text.encode(), fds)


def receive(sock: socket.socket) -> Message:
    """Return the next datagram; OSError (BlockingIOError: there is none).

    A datagram that was cut, or that is no text, comes without assignments. Its descriptors are the caller's to close.
    """
    data, control, flags, _ = sock.recvmsg(_MAX_MESSAGE, _ROOM, _CLOEXEC)
    descriptors: list[OwnedFd] = []
    sender = 0
    for level, kind, content in control:
        if (level, kind) == _RIGHTS:
            whole = len(content) // 4
            descriptors += [OwnedFd(n) for n in struct.unpack(f"={whole}i", content[: whole * 4])]
        elif (level, kind) == _SENDER:
            sender = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
    try:
        text = "" if flags & _CUT else data.decode()
    except UnicodeDecodeError:
        text = ""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return Message(fields, descriptors, sender)


def take_inherited(environment: MutableMapping[str, str]) -> list[tuple[str, OwnedFd]]:
    """Return the (name, descriptor) pairs that this process was started with, close-on-exec and owned from now on.

    The variables are removed, so that nobody takes them twice.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for index in range(int(count)):
        os.set_inheritable(FIRST + index, False)  # noqa: FBT003 - takes no keyword
        name = names[index] if index < len(names) else "unknown"
        found.append((name, OwnedFd(FIRST + index)))
    return found


def inheritance(names: Sequence[str]) -> dict[str, str]:
    """Return the environment that tells a program of descriptors `FIRST`, ... under these names; LISTEN_PID comes later."""
    if not names:
        return {}
    return {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
