"""What is held: descriptors by name, as systemd's file descriptor store keeps them (FDSTORE=1 in sd_notify(3)).

What is the same open file as one that is held already is not held twice. An entry whose other end hangs up (EPOLLHUP,
EPOLLERR) goes by itself, unless it came with FDPOLL=0.
"""

from __future__ import annotations

import errno
import logging
import select
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fdbox.keeper.openfiles import OpenFiles
from fdbox.linux.closer import Closer
from fdbox.linux.sdnotify import MAX_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdbox.linux.fd import OwnedFd
    from fdbox.linux.sdnotify import Message

log: logging.Logger = logging.getLogger(__name__)

UNNAMED = "stored"
#: closes what others have opened
closer: Closer = Closer()


class Shelf(Protocol):
    """What can do what a message asks for."""

    def add(self, name: str, fds: Sequence[OwnedFd], *, poll: bool) -> None:
        """Hold descriptors under a name, or close them."""

    def remove(self, name: str) -> None:
        """Let go of everything under a name."""


class Held(NamedTuple):
    """A descriptor, and whether a hang-up ends its stay."""

    fd: OwnedFd
    polled: bool


def obey(message: Message, shelf: Shelf) -> None:
    """Do what a message says of descriptors, and close all of its own that are not kept.

    BARRIER=1 needs no more than that: its descriptor is closed, and whoever waits sees that everything before was done.
    """
    fields = message.fields
    if fields.get("FDSTOREREMOVE") == "1" and "FDNAME" in fields:
        shelf.remove(fields["FDNAME"])
    if fields.get("FDSTORE") == "1":
        name = fields.get("FDNAME", UNNAMED)
        name = name if may_be_name(name) else UNNAMED
        shelf.add(name, message.descriptors, poll=fields.get("FDPOLL") != "0")
    else:
        for fd in message.descriptors:
            closer.close(fd)


def may_be_name(name: str) -> bool:
    """Return whether sd_notify(3) allows the name: ASCII that can be printed, without a colon."""
    return 0 < len(name) <= MAX_NAME and ":" not in name and name.isascii() and name.isprintable()


class Store:
    """Descriptors by name; several may share one."""

    def __init__(self, limit: int) -> None:
        """Hold at most `limit` descriptors."""
        self._limit = limit
        self._held: dict[str, list[Held]] = {}
        self._count = 0
        self._files = OpenFiles()
        self._hangups = select.epoll()

    def fileno(self) -> int:
        """Return a descriptor, borrowed, that is readable when `drop_hung_up` has something to do."""
        return self._hangups.fileno()

    def add(self, name: str, fds: Sequence[OwnedFd], *, poll: bool) -> None:
        """Hold descriptors under a name; close those that are held already, and those over the limit."""
        for fd in fds:
            if self._count >= self._limit:
                log.error("no room for %r: the limit is %d descriptors", name, self._limit)
                closer.close(fd)
                continue
            if self._files.find(fd.fileno()) is not None:
                closer.close(fd)
                continue
            self._files.add(fd.fileno())
            self._held.setdefault(name, []).append(Held(fd, poll and self._watch(fd)))
            self._count += 1

    def remove(self, name: str) -> None:
        """Let go of everything under a name."""
        for held in self._held.pop(name, []):
            self._let_go(held)

    def drop_hung_up(self) -> list[tuple[str, OwnedFd]]:
        """Let go of what has hung up; return the (name, closed descriptor) pairs."""
        gone = {number for number, _ in self._hangups.poll(0)}
        dropped: list[tuple[str, OwnedFd]] = []
        if not gone:
            return dropped
        for name, entries in list(self._held.items()):
            for held in [one for one in entries if one.polled and one.fd.fileno() in gone]:
                entries.remove(held)
                self._let_go(held)
                dropped.append((name, held.fd))
            if not entries:
                del self._held[name]
        return dropped

    def contents(self) -> list[tuple[str, OwnedFd]]:
        """Return (name, descriptor), borrowed, in the order in which the names came."""
        return [(name, held.fd) for name, entries in self._held.items() for held in entries]

    def close(self) -> None:
        """Let go of everything."""
        for name in list(self._held):
            self.remove(name)
        self._hangups.close()

    def _watch(self, fd: OwnedFd) -> bool:
        try:
            self._hangups.register(fd.fileno(), 0)
        except OSError as error:
            # EPERM: memory and other files that are always ready, which never hang up. What else there is (ELOOP of epolls in
            # epolls, ENOSPC) is no reason not to hold it.
            if error.errno != errno.EPERM:
                log.warning("a hang-up will not be seen: %s", error)
            return False
        return True

    def _let_go(self, held: Held) -> None:
        if held.polled:
            self._hangups.unregister(held.fd.fileno())
        self._files.discard(held.fd.fileno())
        self._count -= 1
        closer.close(held.fd)
