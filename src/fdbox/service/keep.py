"""What outlives this process: descriptors with the keeper, and a journal that says which is which.

    put       the keeper gets the descriptors, and says that it has them; then the journal is written; then the client hears
    remove    the journal is written; then the keeper lets go

What the keeper has and the journal does not name is let go at the next start. Under systemd, PID 1 is the keeper.

An open file is with the keeper once, whatever number of entries it has: systemd's store takes nothing twice
(sd_notify(3)). Keys are used again, so that they stay short: all names travel in one environment variable.

systemd from 261 on carries what memory is in its store over a kexec. What was true in another incarnation is not true in this
one: a journal from there, and all that comes with it, is let go. Boxes cross sealed, by a carrier, or not at all.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, QuotaExceeded
from fdbox.keeper import protocol
from fdbox.keeper.openfiles import OpenFiles
from fdbox.linux.fd import OwnedFd, close_all, dup
from fdbox.service.journal import Change, Contents, Journal, Record
from fdbox.service.keeper_link import KeeperLink

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping, Sequence

    from fdbox.model import BoxKey
    from fdbox.ports import Reached

log: logging.Logger = logging.getLogger(__name__)

#: names with the keeper: e-1a (an entry, in hexadecimal), journal-3 (the third journal), session-NAME (a delivery of the
#: last kernel that is not finished), listener
_ENTRY, _JOURNAL, SESSION, LISTENER = "e-", "journal-", "session-", "listener"
#: a journal that grew by this much is written anew
_GROWTH = 8 << 20


class Keep:
    """The keeper and the journal. Make it inside a running event loop, with what this process was started with."""

    def __init__(
        self,
        environment: Mapping[str, str],
        given: Sequence[tuple[str, OwnedFd]],
        incarnation: str,
        reached: Reached,
    ) -> None:
        """Take over what the keeper gave, if that was in this incarnation.

        Raises:
            OSError: nobody listens at NOTIFY_SOCKET.
            JournalUnreadable: a newer fdbox wrote it.
        """
        self._reached = reached
        self._incarnation = incarnation
        self._version = int(environment.get(protocol.VARIABLE, "0"))
        self._given: dict[str, OwnedFd] = {}
        for name, fd in given:
            if name in self._given:
                fd.close()
            else:
                self._given[name] = fd
        self._journals: dict[int, Journal] = {}
        self._generation = max(_numbers(self._given, _JOURNAL), default=0)
        newest = self._given.pop(f"{_JOURNAL}{self._generation}", None)
        if newest is not None:
            self._journals[self._generation] = Journal(newest)
        #: names with the keeper that mean nothing any more
        self._stale: list[str] = self._strike_out_foreign()
        #: entries that the journal names and the keeper does not have
        self.missing: list[tuple[BoxKey, str]] = self._strike_out_missing()
        used = set(_numbers(self._given, _ENTRY))
        self._next = 1 + max(used, default=0)
        self._free = [number for number in range(1, self._next) if number not in used]
        #: descriptors of entries that the keeper takes: it says nothing when it has no room
        self.room: int = protocol.room_for_entries(environment)
        self._has_past = bool(given)
        self._files = OpenFiles()
        self._key: dict[int, str] = {}
        self._sharers: dict[str, list[int]] = {}
        self._changing: asyncio.Task[None] | None = None
        self._link = KeeperLink(environment["NOTIFY_SOCKET"])

    @property
    def contents(self) -> Contents:
        """What the process before this one had, and what has changed since; empty at the first start."""
        return next((journal.contents for journal in self._journals.values()), Contents())

    @property
    def has_keeper(self) -> bool:
        """Whether the keeper is there still."""
        return self._link.is_up

    def take(self, key: str) -> OwnedFd:
        """Return the descriptor that was held under a key, and goes on to be; the second time, another of the same file."""
        fd = self._given.pop(key, None) or dup(self._sharers[key][0])
        self._share(fd.fileno(), key)
        return fd

    def take_listener(self) -> OwnedFd | None:
        """Return the socket that the process before this one listened on."""
        return self._given.pop(LISTENER, None)

    def take_sessions(self) -> dict[str, OwnedFd]:
        """Return the deliveries of the last kernel that the process before this one had not finished."""
        names = [name for name in self._given if name.startswith(SESSION)]
        return {name.removeprefix(SESSION): self._given.pop(name) for name in names}

    async def begin(self, listener: socket.socket | None) -> None:
        """Begin a new journal, let go of what nobody took, and hold a new `listener`; errors as `hold`."""
        for name in (*self._stale, *self._given):
            self._let_go_of(name)
        self._close_given()
        await self._replace_journals()
        # After the journal: whoever finds this has that, too.
        if listener is not None:
            self._let_go_of(LISTENER)
            self._store(LISTENER, listener.fileno())

    async def ready(self) -> None:
        """Say that clients are served from now on."""
        self._link.tell({"READY": "1"})
        await self._link.barrier()

    # --- changes -----------------------------------------------------------------------------------------------------

    async def hold(self, fds: Iterable[OwnedFd]) -> list[str]:
        """Return the keys under which the keeper now has these descriptors; `let_go` before they are closed.

        Raises:
            QuotaExceeded: the keeper has no room for them.
            KeeperGone: there is no keeper any more.
        In either case nothing is held.
        """
        begun: list[int] = []
        keys = []
        try:
            for number in [fd.fileno() for fd in fds]:
                keys.append(self._key_for(number))
                begun.append(number)
            self._reached("sent to the keeper")
            await self._link.barrier()
        except BaseException:
            self.let_go(begun)
            raise
        self._reached("with the keeper")
        return keys

    def let_go(self, numbers: Iterable[int]) -> None:
        """Have the keeper close what was held for these descriptors, unless others share their open files."""
        for number in numbers:
            key = self._key.pop(number)
            sharers = self._sharers[key]
            stood_for_it = sharers[0] == number
            sharers.remove(number)
            if sharers:
                if stood_for_it:
                    self._files.discard(number, sharers[0])
                continue
            self._files.discard(number)
            del self._sharers[key]
            self._let_go_of(key)
            heapq.heappush(self._free, int(key.removeprefix(_ENTRY), 16))

    async def hold_session(self, name: str, fd: int) -> None:
        """Have a delivery outlive this process; errors as `hold`."""
        self._store(SESSION + name, fd)
        await self._link.barrier()

    def let_go_of_session(self, name: str) -> None:
        """Have the keeper close a delivery."""
        self._let_go_of(SESSION + name)

    def prepare(self, record: Record) -> None:
        """Take the memory that `write` of this record is going to need; NoRoom if there is none."""
        for journal in self._journals.values():
            journal.reserve(record)

    def write(self, record: Record) -> None:
        """Write a record down: from now on it has happened; NoRoom if it was not prepared and there is none."""
        self.prepare(record)
        for journal in self._journals.values():
            journal.write(record)
        self._reached("written down")
        grown = max(journal.grown for journal in self._journals.values())
        if grown > _GROWTH and self._changing is None:
            self._changing = asyncio.get_running_loop().create_task(self._change_journal())

    async def replace_keeper(self) -> None:
        """Have the keeper become the code that is now on disk, if it can (systemd cannot, and older keepers).

        Raises:
            KeeperGone: it did not survive that, or was no more.
        """
        if self._version >= 1:
            self._link.tell({protocol.REEXEC: "1"})
        await self._link.barrier()

    def reloading(self, now: float) -> None:
        """Say that this process is about to be replaced; `now` is monotonic, in seconds."""
        self._link.tell({"RELOADING": "1", "MONOTONIC_USEC": str(int(now * 1e6))})

    def say_status(self, text: str) -> None:
        """Tell whoever watches in a sentence, and that clients are served."""
        self._link.tell({"READY": "1", "STATUS": text})

    def forget_listener(self) -> None:
        """Have the keeper close the listening socket: its path is about to go."""
        self._let_go_of(LISTENER)

    async def close(self) -> list[tuple[str, OwnedFd]]:
        """Hang up, when everything was told; return the journals, for the process that takes over."""
        if self._changing is not None:
            await asyncio.gather(self._changing, return_exceptions=True)
        await self._link.close()
        self._close_given()
        return [(f"{_JOURNAL}{n}", journal.detach()) for n, journal in self._journals.items()]

    # --- inside ------------------------------------------------------------------------------------------------------

    def _strike_out_foreign(self) -> list[str]:
        """Close all that was given if no journal of this incarnation came with it; return its names."""
        if self._journals and self._journals[self._generation].incarnation == self._incarnation:
            return []
        stale = [*self._given, *(f"{_JOURNAL}{generation}" for generation in self._journals)]
        for journal in self._journals.values():
            journal.close()
        self._journals.clear()
        self._close_given()
        return stale

    def _close_given(self) -> None:
        close_all(self._given.values())
        self._given.clear()

    def _strike_out_missing(self) -> list[tuple[BoxKey, str]]:
        """Take out of the journal, before its key is used again, what the keeper does not have."""
        missing = [
            (box_key, name)
            for box_key, box in self.contents.boxes.items()
            for name, noted in box.entries.items()
            if noted.key not in self._given
        ]
        for box_key, name in missing:
            self.contents.apply(Change(box_key.owner, box_key.name, removed=[name]))
        return missing

    def _key_for(self, number: int) -> str:
        """Return the key of an open file; the keeper is sent it if it is new."""
        known = self._files.find(number)
        if known is not None:
            key = self._key[known]
        else:
            if len(self._sharers) >= self.room:
                raise QuotaExceeded(
                    f"the keeper has room for {self.room} descriptors",
                    remedy="remove something; under systemd FileDescriptorStoreMax= says how many it takes",
                    limit=self.room,
                )
            key = f"{_ENTRY}{self._new_number():x}"
            if self._has_past:
                # A process before this one may have lost count of it; two files under a key would be one too many.
                self._let_go_of(key)
            self._store(key, number)
        self._share(number, key)
        return key

    def _share(self, number: int, key: str) -> None:
        sharers = self._sharers.setdefault(key, [])
        if not sharers:
            self._files.add(number)
        sharers.append(number)
        self._key[number] = key

    def _new_number(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1

    def _store(self, name: str, fd: int) -> None:
        # FDPOLL=0: an entry stays until it is removed, also when its other end hangs up.
        self._link.tell({"FDSTORE": "1", "FDNAME": name, "FDPOLL": "0"}, [fd])

    def _let_go_of(self, name: str) -> None:
        self._link.tell({"FDSTOREREMOVE": "1", "FDNAME": name})

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
        fresh = Journal.new(self.contents, self._incarnation)
        self._generation += 1
        self._journals[self._generation] = fresh
        self._store(f"{_JOURNAL}{self._generation}", fresh.fileno())
        await self._link.barrier()
        self._reached("a new journal is with the keeper")
        for generation in old:
            self._let_go_of(f"{_JOURNAL}{generation}")
            self._journals.pop(generation).close()


def _numbers(names: Iterable[str], prefix: str) -> list[int]:
    base = 16 if prefix == _ENTRY else 10
    return [int(name.removeprefix(prefix), base) for name in names if name.startswith(prefix)]
