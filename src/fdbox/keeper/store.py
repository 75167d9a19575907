"""What is held: descriptors by name, as systemd's file descriptor store keeps them (FDSTORE=1 in sd_notify(3))."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.linux.fd import OwnedFd, close_all
from fdbox.linux.sdnotify import MAX_NAME

if TYPE_CHECKING:
    from fdbox.linux.sdnotify import Message


class Store:
    """Descriptors by name; several may share one."""

    def __init__(self, limit: int) -> None:
        """Hold at most `limit` descriptors."""
        self._limit = limit
        self._held: dict[str, list[OwnedFd]] = {}
        self._count = 0

    def take(self, message: Message) -> None:
        """Do what a message says, and close all of its descriptors that are not kept.

        BARRIER=1 needs no more than that: its descriptor is closed, and whoever waits sees that everything before was done.
        """
        name = message.fields.get("FDNAME", "stored")
        left = message.descriptors
        if message.fields.get("FDSTOREREMOVE") == "1":
            self.remove(name)
        elif message.fields.get("FDSTORE") == "1" and self._may_keep(name, len(left)):
            self._held.setdefault(name, []).extend(left)
            self._count += len(left)
            left = []
        close_all(left)

    def remove(self, name: str) -> None:
        """Let go of everything under a name."""
        gone = self._held.pop(name, [])
        self._count -= len(gone)
        close_all(gone)

    def contents(self) -> list[tuple[str, OwnedFd]]:
        """Return (name, descriptor), borrowed, in the order in which they came."""
        return [(name, fd) for name, fds in self._held.items() for fd in fds]

    def close(self) -> None:
        """Let go of everything."""
        for name in list(self._held):
            self.remove(name)

    def _may_keep(self, name: str, count: int) -> bool:
        sound = 0 < len(name) <= MAX_NAME and ":" not in name and name.isprintable()
        return sound and self._count + count <= self._limit
