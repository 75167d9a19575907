"""What the last kernel left, made safe piece by piece: this process may die at any point of it, and nothing is lost.

A delivery is with the keeper before anything is taken from it, and until what was in it is with the keeper and written
down. Only between the system call that receives a delivery and the message to the keeper does it hang on us alone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import FdboxError, KeeperGone, NoRoom, QuotaExceeded
from fdbox.handover import arrive
from fdbox.handover.arrive import AllCame, BoxCame, Finished, Loss, Past, Received, Step
from fdbox.handover.manifest import INDEX_SESSION
from fdbox.linux.fd import OwnedFd, close_all, dup
from fdbox.model import BoxKey
from fdbox.service.journal import Arrived, Change, Lost, Record
from fdbox.service.keep import SESSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.ports import Delivery
    from fdbox.service.vault import Held, Vault

log: logging.Logger = logging.getLogger(__name__)


class _Origin(NamedTuple):
    """The box that an arrived one was, and the incarnation that it has left; empty: the last one, for the kernel brought it."""

    box: BoxKey
    incarnation: str


class Arrival:
    """Takes in what comes, for the daemon's start, before anybody connects."""

    def __init__(self, vault: Vault, sessions: dict[str, OwnedFd]) -> None:
        """Own the deliveries that a process before this one had not finished; its journal tells how far it came."""
        self._vault = vault
        self._keep = vault.keep
        self._sessions = sessions
        #: what is not finished: unreadable, and kept for somebody who may still understand it
        self.open: dict[str, Delivery[OwnedFd]] = {}
        #: the index whose boxes come: what is behind its @, nothing if the kernel brings it
        self._source = ""
        self._came: dict[BoxKey, _Origin] = {}

    async def receive(self) -> None:
        """Take everything in."""
        try:
            await self._receive()
        finally:
            close_all(self._sessions.values())  # of what stays unfinished, the keeper has its own

    def hand_over(self) -> list[tuple[str, OwnedFd]]:
        """Return what is not finished, by the names that the keeper has it under, for the process that takes over."""
        return [(f"{SESSION}{name}", dup(one.fileno())) for name, one in self.open.items()]

    def there(self, incarnation: str) -> dict[BoxKey, list[str]]:
        """Return the entries that are there, by the box in which they have left an incarnation.

        A box has another name by now if somebody else's had it; and one of that name may be from an earlier incarnation.
        What a process before this one has taken in is known by its name alone.
        """
        entries = {box.key: list(box.entries) for box in self._vault.boxes}
        wanted = ("", incarnation)
        by_name = {key: names for key, names in entries.items() if key not in self._came}
        came = {
            origin.box: entries[key]
            for key, origin in self._came.items()
            if origin.incarnation in wanted
        }
        return by_name | came

    async def _receive(self) -> None:
        done = () if self._keep is None else frozenset(self._keep.contents.arrived)
        past = Past(self._sessions, done)
        steps = arrive.arrive(self._vault.carrier, self._vault.kernel, past)
        while (step := await self._next(steps)) is not None:
            await self._make_safe(step)

    async def _next(self, steps: Iterator[Step]) -> Step | None:
        """Return the next step, or None after the last; a carrier that cannot be asked is asked by the next process.

        Whatever is wrong with it: without a daemon nothing at all would be there.
        """
        try:
            return await asyncio.to_thread(next, steps, None)
        except FdboxError as error:
            why = str(error)
            log.error("cannot ask for what the last kernel left: %s", why)  # noqa: TRY400 - the sentence says it all
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            log.exception("cannot ask for what the last kernel left")
        self._vault.losses.append(Loss(None, "", why))
        return None

    async def _make_safe(self, step: Step) -> None:
        match step:
            case Received():
                self.open[step.session] = step.delivery
                session, _, source = step.session.partition("@")
                if session == INDEX_SESSION:
                    self._source = source
                await self._hold(step)
            case BoxCame():
                for loss in step.losses:
                    self._note(loss)
                await self._adopt(step)
            case Finished():
                self._let_go(step.session)
            case AllCame():
                self._write(Arrived({step.session: 0}))
            case Loss():
                self._note(step)
        self._vault.reached(f"arrival: {type(step).__name__}")

    async def _hold(self, step: Received) -> None:
        if self._keep is None:
            return
        try:
            await self._keep.hold_session(step.session, step.delivery.fileno())
        except KeeperGone as error:
            log.error("what arrives ends with this process: %s", error)  # noqa: TRY400 - the sentence says it all

    def _let_go(self, session: str) -> None:
        self.open.pop(session, None)
        if self._keep is not None:
            self._keep.let_go_of_session(session)

    def _note(self, loss: Loss) -> None:
        if loss in self._vault.losses:  # a process before this one has met it, too
            return
        log.error("lost: %s %r: %s", loss.box, loss.entry, loss.reason)
        self._vault.losses.append(loss)
        self._write(lost_record(loss))

    def _write(self, record: Record) -> None:
        if self._keep is None:
            return
        try:
            self._keep.write(record)
        except NoRoom as error:
            log.error("the process after this one will not know what has come: %s", error)  # noqa: TRY400 - as above

    async def _adopt(self, came: BoxCame) -> None:
        """Take a box in: nothing turns it away, not even a keeper without room for it."""
        key = self._free_key(came.box)
        fresh = dict(self._readmitted(came))
        try:
            await self._vault.hold(list(fresh.values()))
        except (QuotaExceeded, KeeperGone) as error:
            log.error("box %r of user %d ends with this process: %s", key.name, key.owner, error)  # noqa: TRY400 - as above
        noted = {name: held.noted() for name, held in fresh.items()}
        self._write(Change(key.owner, key.name, put=noted, session=came.session))
        self._vault.boxes.adopt(key, fresh)
        self._came[key] = _Origin(came.box, self._source)
        self._vault.arrived += len(fresh)

    def _readmitted(self, came: BoxCame) -> Iterator[tuple[str, Held]]:
        for name, entry in came.entries.items():
            try:
                yield name, self._vault.readmit(entry)
            except (FdboxError, OSError) as error:
                entry.fd.close()
                self._note(Loss(came.box, name, f"it is here, and cannot be looked at: {error}"))

    def _free_key(self, key: BoxKey) -> BoxKey:
        """Return where a box can go: somebody may have made one of its name while nothing could be asked for."""
        free = key
        for number in itertools.count(2):
            if free not in self._vault.boxes:
                break
            free = BoxKey(key.owner, f"{key.name}.{number}")
        if free != key:
            log.warning(
                "box %r of user %d is there already: the one that arrived is %r", *_names(key, free)
            )
        return free


def _names(key: BoxKey, free: BoxKey) -> tuple[str, int, str]:
    return key.name, key.owner, free.name


def lost_record(loss: Loss) -> Lost:
    """Return a loss as it is written down."""
    box = loss.box or BoxKey(0, "")
    return Lost(box.owner, box.name, loss.entry, loss.reason)


def loss_from(record: Lost) -> Loss:
    """Return a loss that was written down."""
    box = BoxKey(record.owner, record.box) if record.box else None
    return Loss(box, record.entry, record.reason)
