"""A carrier whose sessions are real descriptors, as those of /dev/liveupdate are: they live while one is open somewhere.

A session is a Unix socket with one message a file in its queue: a token, and the file's descriptor. Looking at a queue
without taking from it (MSG_PEEK with SO_PEEK_OFF) gives a new descriptor of the same open file each time. What is in a
session goes when its last descriptor is closed.

The next kernel's process is given the sessions as inherited descriptors. Each can be received once, as on the real device:
that it was is noted in a folder.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Self

from fdbox.errors import CannotCarry, KernelError
from fdbox.handover import manifest
from fdbox.linux import scm
from fdbox.linux.fd import OwnedFd, dup
from fdbox.model import Carriage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fdbox.ports import Carrier, Parcel, Shipment

_TOKEN = struct.Struct("=Q")
_SO_PEEK_OFF = 42  # include/uapi/asm-generic/socket.h


class SocketSession:
    """One session, going out or come in."""

    def __init__(self, name: str, fd: OwnedFd) -> None:
        self.name = name
        self._fd = fd

    def fileno(self) -> int:
        return self._fd.fileno()

    def take(self, token: int) -> OwnedFd:
        with socket.socket(fileno=os.dup(self._fd.fileno())) as sock:
            sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
            while True:
                flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                try:
                    data, control, _, _ = sock.recvmsg(_TOKEN.size, socket.CMSG_SPACE(4), flags)
                except BlockingIOError:
                    raise KernelError(f"nothing under {token}", errno=errno.ENOENT) from None
                with OwnedFd(struct.unpack("=i", control[0][2])[0]) as found:
                    if _TOKEN.unpack(data)[0] == token:
                        return found.dup()

    def stream(self, token: int) -> None:
        """Everything is to be taken."""

    def finish(self, *, whole: bool = True) -> None:
        self._fd.close()

    def abandon(self) -> None:
        """It is not finished."""

    def discard(self) -> None:
        self._fd.close()


class SocketShipment(SocketSession):
    """A session that is being filled."""

    carrier = "kernel"

    def __init__(self, name: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sender = ours
        super().__init__(name, OwnedFd(theirs.detach()))

    def add(self, parcels: Sequence[Parcel]) -> None:
        for fd, token, _ in parcels:
            scm.send_with_fds(self._sender, _TOKEN.pack(token), [fd])
        self._sender.close()

    def discard(self) -> None:  # type: ignore[explicit-override]  # typing.override is Python 3.12
        self._sender.close()
        super().discard()

    def is_unchanged(self, token: int) -> bool:
        raise ValueError(f"{token} is no stream")

    def release(self) -> None:
        self.discard()


class SocketCarrier:
    """Sends sessions, and receives those that it was given."""

    name = "kernel"
    in_place = True
    streams = False

    def __init__(self, received: Path, incoming: Mapping[str, int]) -> None:
        """`received` is a folder; `incoming` are inherited descriptors by the session's name."""
        self._received = received
        self._incoming = incoming
        self.outgoing: dict[str, SocketShipment] = {}

    def now(self) -> Self:
        return self

    def by_image(self) -> Self:
        raise CannotCarry("the fake has no images")

    def close(self) -> None:
        """Nothing is held."""

    def carriage(self) -> Carriage:
        return Carriage(self.name)

    def probe(self, fd: int, kind: str) -> Carriage:
        return Carriage(None, "the fake takes memory only", "use another")

    def ship(self, name: str, replacing: Shipment | None = None) -> SocketShipment:
        if replacing is not None:
            replacing.discard()
        self.outgoing[name] = SocketShipment(name)
        return self.outgoing[name]

    def claim(self, *, has_past: bool) -> None:
        """Nothing is left of a process that is no more."""

    def indexes(self) -> tuple[str, ...]:
        return (manifest.INDEX_SESSION,)

    def tidy(self) -> None:
        """Nothing is left."""

    def receive(self, name: str) -> SocketSession | None:
        note = self._received / name
        if name not in self._incoming or note.exists():
            return None
        note.touch()
        return SocketSession(name, dup(self._incoming[name]))

    def resume(self, name: str, fd: OwnedFd) -> SocketSession:
        return SocketSession(name, fd)


def fits_the_port(carrier: SocketCarrier) -> Carrier[OwnedFd]:
    """Let mypy compare the fake with the protocol that it stands for."""
    return carrier
