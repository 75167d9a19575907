"""What outlives this process: descriptors with the keeper, and a journal that says which is which.

    put       the keeper gets the descriptors, and says that it has them; then the journal is written; then the client hears
    remove    the journal is written; then the keeper lets go

What the keeper has and the journal does not name is let go at the next start. Under systemd, PID 1 is the keeper.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.service.journal import Contents, Journal, Record
from fdbox.service.keeper_link import KeeperLink

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

log: logging.Logger = logging.getLogger(__name__)

#: names with the keeper: e-1a (an entry, in hexadecimal), journal-3 (the third journal), listener
_ENTRY, _JOURNAL, _LISTENER = "e-", "journal-", "listener"
#: a journal that grew by this much is written anew
_GROWTH = 8 << 20


class Keep:
    """The keeper and the journal. Make it inside a running event loop, with what this process was started with."""

    def __init__(self, notify_socket: str, given: Sequence[tuple[str, OwnedFd]]) -> None:
        """Take over what the keeper gave; OSError if it does not listen at `notify_socket`."""
        self._link = KeeperLink(notify_socket)
        self._given: dict[str, OwnedFd] = {}
        for name, fd in given:
            self._given.setdefault(name, fd)
            if self._given[name] is not fd:
                fd.close()
        self._numbers = itertools.count(1 + max(_numbers(self._given, _ENTRY), default=0))
        self._generation = max(_numbers(self._given, _JOURNAL), default=0)
        newest = self._given.pop(f"{_JOURNAL}{self._generation}", None)
        self._journals = {} if newest is None else {self._generation: Journal(newest)}
        self._changing: asyncio.Task[None] | None = None

    @property
    def contents(self) -> Contents:
        """What the process before this one had; empty at the first start."""
        return next((journal.contents for journal in self._journals.values()), {})

    def take(self, key: str) -> OwnedFd | None:
        """Return the descriptor that was held under a key."""
        return self._given.pop(key, None)

    def take_listener(self) -> OwnedFd | None:
        """Return the socket that the process before this one listened on."""
        return self._given.pop(_LISTENER, None)

    async def begin(self) -> None:
        """Begin a new journal, and let go of what nobody took; errors as `hold`."""
        for name, fd in self._given.items():
            self._link.tell({"FDSTOREREMOVE": "1", "FDNAME": name})
            fd.close()
        self._given.clear()
        await self._replace_journals()

    async def ready(self, listener: socket.socket | None) -> None:
        """Say that clients are served from now on; a new `listener` is held too."""
        if listener is not None:
            self._store(_LISTENER, listener.fileno())
        self._link.tell({"READY": "1"})
        await self._link.barrier()

    # --- changes -----------------------------------------------------------------------------------------------------

    async def hold(self, fds: Iterable[OwnedFd]) -> list[str]:
        """Return the keys under which the keeper now has these descriptors.

        Raises:
            KeeperGone: there is no keeper any more, and nothing is held.
        """
        keys = []
        try:
            for fd in fds:
                keys.append(f"{_ENTRY}{next(self._numbers):x}")
                self._store(keys[-1], fd.fileno())
            await self._link.barrier()
        except BaseException:
            self.let_go(keys)
            raise
        return keys

    def let_go(self, keys: Iterable[str]) -> None:
        """Tell the keeper to close what it has under these keys."""
        for key in keys:
            self._link.tell({"FDSTOREREMOVE": "1", "FDNAME": key})

    def prepare(self, record: Record) -> None:
        """Take the memory that `write` of this record is going to need; NoRoom if there is none."""
        for journal in self._journals.values():
            journal.reserve(record)

    def write(self, record: Record) -> None:
        """Write a prepared record down: from now on the change has happened."""
        for journal in self._journals.values():
            journal.write(record)
        grown = max(journal.grown for journal in self._journals.values())
        if grown > _GROWTH and self._changing is None:
            self._changing = asyncio.get_running_loop().create_task(self._change_journal())

    async def close(self, *, again: bool) -> None:
        """Hang up; `again` says that another process is going to take over."""
        if self._changing is not None:
            await asyncio.gather(self._changing, return_exceptions=True)
        self._link.tell({"RELOADING" if again else "STOPPING": "1"})
        await self._link.close()
        close_all([*self._given.values()])
        for journal in self._journals.values():
            journal.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _store(self, name: str, fd: int) -> None:
        # FDPOLL=0: an entry stays until it is removed, also when its other end hangs up.
        self._link.tell({"FDSTORE": "1", "FDNAME": name, "FDPOLL": "0"}, [fd])

    async def _change_journal(self) -> None:
        try:
            await self._replace_journals()
        except FdboxError as error:
            log.error("cannot begin a new journal: %s", error)  # noqa: TRY400 - the sentence says it all
        finally:
            self._changing = None

    async def _replace_journals(self) -> None:
        """Begin a new journal with what is there now; all are written until the keeper has the new one."""
        old = list(self._journals)
        fresh = Journal.new(self.contents)
        self._generation += 1
        self._journals[self._generation] = fresh
        self._store(f"{_JOURNAL}{self._generation}", fresh.fileno())
        await self._link.barrier()
        for generation in old:
            self._link.tell({"FDSTOREREMOVE": "1", "FDNAME": f"{_JOURNAL}{generation}"})
            self._journals.pop(generation).close()


def _numbers(names: Iterable[str], prefix: str) -> list[int]:
    base = 16 if prefix == _ENTRY else 10
    return [int(name.removeprefix(prefix), base) for name in names if name.startswith(prefix)]
