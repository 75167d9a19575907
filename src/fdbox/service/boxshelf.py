"""A box as the file descriptor store of a program: what it stores outlives its supervisor, and the kernel.

A store may have several descriptors under one name, a box has one: `conn`, `conn:2`, `conn:3`, for no name in a store has
a colon. A slash, which no box takes, becomes U+2044, which no store takes. What others put into the box is left alone.

While the box takes nothing (it is sealed, or the daemon is away), what the program stores is held here; `catch_up` puts it.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from fdbox.errors import ConnectionLost, EntryExists, EntryNotFound, FdboxError
from fdbox.keeper.openfiles import OpenFiles
from fdbox.keeper.store import Store
from fdbox.linux.fd import close_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdbox.client.box import Box
    from fdbox.linux.fd import OwnedFd

log: logging.Logger = logging.getLogger(__name__)

_SLASH = "\N{FRACTION SLASH}"
_ATTEMPTS = 3


def stored_name(entry: str) -> str:
    """Return the name in the store of an entry of the box; one with a colon cannot be told to a program."""
    name, colon, number = entry.rpartition(":")
    return (name if name and colon and number.isdecimal() else entry).replace(_SLASH, "/")


class BoxShelf:
    """The store of one program, in a box. It holds a copy of everything, to see what hangs up."""

    def __init__(self, box: Box, limit: int) -> None:
        """Add to the box what the program stores, up to `limit` descriptors in all."""
        self._box = box
        self._limit = limit
        self._copies = Store(limit)
        self._polled: set[str] = set()
        #: entries that are not in the box yet, and those that are still in it
        self._missing: set[str] = set()
        self._leaving: set[str] = set()
        #: names that others have taken since the box was read
        self._others: set[str] = set()
        self._was_read = False

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

    def catch_up(self) -> bool:
        """Do what the box did not take before; return whether something is left."""
        for entry, fd in self._copies.contents():
            if entry in self._missing:
                self._put(entry, fd)
        for entry in sorted(self._leaving):
            self._take_out(entry)
        return bool(self._missing or self._leaving)

    def contents(self) -> list[tuple[str, OwnedFd]]:
        """Return (name, descriptor), borrowed, of what is in the box now, others' entries too.

        What the box did not take yet is among it; without the daemon, it is what was there last. An FdboxError if it was
        never read: a program that finds nothing would begin anew.
        """
        self.catch_up()
        try:
            fresh = self._read()
        except FdboxError as error:
            if not self._was_read:
                raise
            log.error("box %r cannot be read, going on with what it had: %s", self._box.name, error)  # noqa: TRY400 - the sentence says it all
        else:
            self._was_read = True
            self._others.clear()
            self._replace_copies(fresh)
        named = [(stored_name(entry), fd) for entry, fd in self._copies.contents()]
        if untold := [name for name, _ in named if ":" in name]:
            log.error("%s: not given, ':' separates the names in LISTEN_FDNAMES", untold)
        return [(name, fd) for name, fd in named if ":" not in name]

    def close(self) -> None:
        """Close the copies; the box goes on."""
        self._copies.close()

    def _read(self) -> dict[str, OwnedFd]:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(EntryNotFound):  # taken out since it was listed
                return self._box.get_many([one.name for one in self._box.list()])
        return self._box.get_many([one.name for one in self._box.list()])

    def _replace_copies(self, fresh: dict[str, OwnedFd]) -> None:
        close_all(fresh.pop(entry) for entry in self._leaving & fresh.keys())
        room = max(self._limit, len(fresh) + len(self._missing))
        before, self._copies = self._copies, Store(room)
        for entry, fd in fresh.items():
            self._copies.add(entry, [fd], poll=entry in self._polled)
        for entry, fd in before.contents():
            if entry in self._missing:
                self._copies.add(entry, [fd.dup()], poll=entry in self._polled)
        before.close()

    def _free_entry(self, name: str) -> str:
        taken = {entry for entry, _ in self._copies.contents()} | self._others | self._leaving
        entry, number = name, 1
        while entry in taken:
            number += 1
            entry = f"{name}:{number}"
        return entry

    def _put(self, entry: str, fd: OwnedFd) -> None:
        """Put a copy into the box; where another client has taken its name, under another one."""
        try:
            is_taken = self._offer(entry, fd)
        except FdboxError as error:
            if entry not in self._missing:
                log.error("%r is not in box %r yet: %s", entry, self._box.name, error)  # noqa: TRY400 - as above
            self._missing.add(entry)
            return
        self._missing.discard(entry)
        if is_taken:
            self._others.add(entry)
            again, poll = fd.dup(), entry in self._polled
            self._polled.discard(entry)
            self._copies.remove(entry)
            self.add(stored_name(entry), [again], poll=poll)

    def _offer(self, entry: str, fd: OwnedFd) -> bool:
        """Put a copy into the box; return whether it has something else under this name."""
        try:
            self._put_in(entry, fd)
        except EntryExists:  # by an attempt whose answer was lost, or by another client
            with self._box.get(entry) as there:
                files = OpenFiles()
                files.add(there.fileno())
                return files.find(fd.fileno()) is None
        return False

    def _put_in(self, entry: str, fd: OwnedFd) -> None:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(ConnectionLost):
                self._box.put(entry, fd)
                return
        self._box.put(entry, fd)

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
            if entry not in self._leaving:
                log.error("%r is still in box %r: %s", entry, self._box.name, error)  # noqa: TRY400 - as above
            self._leaving.add(entry)
            return
        self._leaving.discard(entry)
