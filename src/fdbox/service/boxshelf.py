"""A box as the file descriptor store of a program: what it stores outlives its supervisor, and the kernel.

A store may have several descriptors under one name, a box has one: `conn`, `conn:2`, `conn:3`, for no name in a store has
a colon. A slash, which no box takes, becomes U+2044, which no store takes.

While the box takes nothing (it is sealed, or the daemon is away), what the program stores is held here, and put when it
is asked for again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fdbox.errors import EntryNotFound, FdboxError
from fdbox.keeper.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdbox.client.box import Box
    from fdbox.linux.fd import OwnedFd

log: logging.Logger = logging.getLogger(__name__)

_SLASH = "\N{FRACTION SLASH}"


def stored_name(entry: str) -> str:
    """Return the name in the store of an entry of the box."""
    name, colon, number = entry.rpartition(":")
    return (name if colon and number.isdecimal() else entry).replace(_SLASH, "/")


class BoxShelf:
    """The store of one program, in a box. It holds a copy of everything, to see what hangs up."""

    def __init__(self, box: Box, limit: int) -> None:
        """Add to the box what the program stores, up to `limit` descriptors in all."""
        self._box = box
        self._limit = limit
        self._copies = Store(limit)
        self._polled: set[str] = set()
        self._missing: set[str] = set()

    def fileno(self) -> int:
        """Return a descriptor, borrowed, that is readable when `drop_hung_up` has something to do."""
        return self._copies.fileno()

    def add(self, name: str, fds: Sequence[OwnedFd], *, poll: bool) -> None:
        """Put descriptors into the box, or close those that are there already, and those over the limit."""
        for fd in fds:
            entry = self._free_entry(name.replace("/", _SLASH))
            self._copies.add(entry, [fd], poll=poll)
            if fd.closed:
                continue
            if poll:
                self._polled.add(entry)
            self._put(entry, fd)

    def remove(self, name: str) -> None:
        """Take everything under a name out of the box."""
        for entry in [entry for entry, _ in self._copies.contents() if stored_name(entry) == name]:
            self._copies.remove(entry)
            self._take_out(entry)

    def drop_hung_up(self) -> list[tuple[str, OwnedFd]]:
        """Take out of the box what has hung up; return the (entry, closed descriptor) pairs."""
        dropped = self._copies.drop_hung_up()
        for entry, _ in dropped:
            self._take_out(entry)
        return dropped

    def contents(self) -> list[tuple[str, OwnedFd]]:
        """Return (name, descriptor), borrowed, of what is in the box now, others' entries too.

        What the box did not take yet is among it; without the daemon, it is what was there last.
        """
        held = dict(self._copies.contents())
        for entry in self._missing & held.keys():
            self._put(entry, held[entry])
        try:
            fresh = self._box.get_many([one.name for one in self._box.list()])
        except FdboxError as error:
            log.error("box %r cannot be read, going on with what it had: %s", self._box.name, error)  # noqa: TRY400 - the sentence says it all
        else:
            self._replace_copies(fresh)
        return [(stored_name(entry), fd) for entry, fd in self._copies.contents()]

    def close(self) -> None:
        """Close the copies; the box goes on."""
        self._copies.close()

    def _replace_copies(self, fresh: dict[str, OwnedFd]) -> None:
        before, self._copies = (
            self._copies,
            Store(max(self._limit, len(fresh) + len(self._missing))),
        )
        for entry, fd in fresh.items():
            self._copies.add(entry, [fd], poll=entry in self._polled)
        for entry, fd in before.contents():
            if entry in self._missing:
                self._copies.add(entry, [fd.dup()], poll=entry in self._polled)
        before.close()

    def _free_entry(self, name: str) -> str:
        taken = {entry for entry, _ in self._copies.contents()}
        entry, number = name, 1
        while entry in taken:
            number += 1
            entry = f"{name}:{number}"
        return entry

    def _put(self, entry: str, fd: OwnedFd) -> None:
        try:
            # A copy of ours has this name, so that to replace is to do it again after an answer that was lost.
            self._box.put(entry, fd, replace=True)
        except FdboxError as error:
            log.error("%r is not in box %r yet: %s", entry, self._box.name, error)  # noqa: TRY400 - as above
            self._missing.add(entry)
        else:
            self._missing.discard(entry)

    def _take_out(self, entry: str) -> None:
        self._polled.discard(entry)
        if entry in self._missing:
            self._missing.discard(entry)
            return
        try:
            self._box.remove(entry)
        except EntryNotFound:
            log.info("%r is in box %r no more", entry, self._box.name)
        except FdboxError as error:
            log.error("%r is still in box %r: %s", entry, self._box.name, error)  # noqa: TRY400 - as above
