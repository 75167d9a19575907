"""What came from the last incarnation: find it, check it, make the entries again, and let the carrier go.

`arrive` yields each step, and goes on when it is asked for the next: what a step brought must be safe by then, for a
delivery that is finished, or whose last holder dies, is gone. A process that comes after one that died on the way
gives what that one had received (`Past`), and nothing comes twice or is missed.

An entry that cannot be made again is a `Loss`, named; all others go on. A box whose manifest cannot be read is a loss
as a whole, and its delivery is never finished, so that its memory is not freed under somebody who may still
understand it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, ManifestInvalid
from fdbox.handover import manifest
from fdbox.handover.manifest import FIRST_TOKEN, Index, Manifest, SavedEntry
from fdbox.kinds import registry
from fdbox.kinds.freight import Arrivals, Place
from fdbox.linux.fd import OwnedFd, close_all

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Sequence

    from fdbox.kinds.freight import Loaded
    from fdbox.model import BoxKey
    from fdbox.ports import Carrier, Delivery, Kernel


@dataclass(frozen=True, slots=True)
class Loss:
    """What did not arrive: an entry, or something of one that did.

    `entry` is empty for a whole box, and `box` None for what was not even named.
    """

    box: BoxKey | None
    entry: str
    reason: str


@dataclass(slots=True)
class Arrived:
    """An entry that is there again, and the label it had."""

    fd: OwnedFd
    label: str


@dataclass(frozen=True, slots=True)
class Received:
    """A delivery is here: from now on it hangs on its descriptor."""

    session: str
    delivery: Delivery[OwnedFd]


@dataclass(frozen=True, slots=True)
class BoxCame:
    """A box is here; its delivery is finished next."""

    session: str
    box: BoxKey
    entries: dict[str, Arrived]
    losses: list[Loss]


@dataclass(frozen=True, slots=True)
class Finished:
    """A delivery is finished: nothing hangs on it any more."""

    session: str


@dataclass(frozen=True, slots=True)
class AllCame:
    """All boxes of an index are here; it is finished next."""

    session: str


log: logging.Logger = logging.getLogger(__name__)

Step = Received | BoxCame | Finished | AllCame | Loss


@dataclass(slots=True)
class Past:
    """What a process before this one has done: deliveries that are not finished, and sessions whose boxes are safe."""

    sessions: dict[str, OwnedFd] = field(default_factory=dict)
    done: Collection[str] = ()


def arrive(carrier: Carrier[OwnedFd], kernel: Kernel, past: Past) -> Iterator[Step]:
    """Yield everything that came by this carrier. Raises nothing that one entry could cause.

    Raises:
        KernelError: the carrier itself cannot be asked.
    """
    is_understood = True
    for name in carrier.indexes():
        if name in past.done:
            yield from _finish(carrier, past, name)
        else:
            is_understood &= yield from _index(carrier, kernel, past, name)
    if is_understood:
        carrier.tidy()


def _index(
    carrier: Carrier[OwnedFd], kernel: Kernel, past: Past, name: str
) -> Generator[Step, None, bool]:
    """Yield what an index names; return False if nobody can read it: what it names stays, whatever that is."""
    delivery = yield from _receive(carrier, name, past)
    if delivery is None:
        return True
    try:
        index = _read_index(delivery, kernel.incarnation())
    except FdboxError as error:
        yield Loss(None, "", f"the index of what came: {error}")
        return False
    for session, box in index.boxes:
        if session in past.done:
            yield from _finish(carrier, past, session)
        else:
            yield from _box(carrier, kernel, past, session, box)
    yield AllCame(name)
    yield from _let_go(delivery, name)
    return True


def _finish(carrier: Carrier[OwnedFd], past: Past, session: str) -> Iterator[Step]:
    """Finish what a process before this one has made safe, and had no time to finish."""
    if (had := past.sessions.pop(session, None)) is not None:
        yield from _let_go(carrier.resume(session, had), session)


def _let_go(
    delivery: Delivery[OwnedFd], session: str, *, whole: bool = True
) -> Generator[Step, None, None]:
    """Finish a delivery. All of it is safe: if that fails, the others come nevertheless, and the next process tries again."""
    try:
        delivery.finish(whole=whole)
    except FdboxError as error:
        log.error("%s has come, and cannot be let go of: %s", session, error)  # noqa: TRY400 - the sentence says it all
        return
    yield Finished(session)


def _receive(
    carrier: Carrier[OwnedFd], session: str, past: Past
) -> Generator[Step, None, Delivery[OwnedFd] | None]:
    had = past.sessions.pop(session, None)
    delivery = carrier.receive(session) if had is None else carrier.resume(session, had)
    if delivery is not None:
        yield Received(session, delivery)
    return delivery


def _read_index(delivery: Delivery[OwnedFd], running: str) -> Index:
    with delivery.take(FIRST_TOKEN) as stored:
        return manifest.read_index(manifest.fetch(stored.fileno()), running)


def _box(
    carrier: Carrier[OwnedFd], kernel: Kernel, past: Past, session: str, box: BoxKey
) -> Iterator[Step]:
    # That the carrier cannot be asked now is no loss: it is raised, and the next process asks again.
    delivery = yield from _receive(carrier, session, past)
    if delivery is None:
        missing = ManifestInvalid(
            "it was sealed, and did not come", remedy="was the kernel loaded by somebody else?"
        )
        yield Loss(box, "", str(missing))
        return
    try:
        entries, losses = load_box(delivery, kernel)
    except FdboxError as error:
        delivery.abandon()
        yield Loss(box, "", str(error))
        return
    yield BoxCame(session, box, entries, losses)
    whole = all(loss.entry in entries for loss in losses)
    yield from _let_go(delivery, session, whole=whole)


def load_box(
    delivery: Delivery[OwnedFd], kernel: Kernel, owner: int | None = None
) -> tuple[dict[str, Arrived], list[Loss]]:
    """Return the entries of one delivered box, and what of them could not be made again.

    It becomes the box of `owner`, by default of the one whose it was.

    Raises:
        ManifestInvalid: the manifest cannot be read.
        SameIncarnation: it was saved by the kernel that runs now.
    """
    with delivery.take(FIRST_TOKEN) as stored:
        saved = manifest.read_manifest(manifest.fetch(stored.fileno()), kernel.incarnation())
    loading = _Loading(saved, delivery, kernel, saved.box.owner if owner is None else owner)
    try:
        for number in range(len(saved.components)):
            loading.load(number)
    except BaseException:
        close_all(arrived.fd for arrived in loading.entries.values())
        raise
    found = loading.entries
    return {one.name: found[one.name] for one in saved.entries if one.name in found}, loading.losses


class _Loading:
    """The components of a box, made again one after the other."""

    def __init__(
        self, saved: Manifest, delivery: Delivery[OwnedFd], kernel: Kernel, owner: int
    ) -> None:
        self.entries: dict[str, Arrived] = {}
        self.losses: list[Loss] = []
        self._saved = saved
        self._delivery = delivery
        self._made: dict[Place, int] = {}
        self._arrivals = Arrivals(kernel, delivery.take, self._made, owner, delivery.stream)
        self._wanted: dict[Place, list[SavedEntry]] = {}
        for entry in saved.entries:
            self._wanted.setdefault(Place(entry.component, entry.file), []).append(entry)

    def load(self, number: int) -> None:
        """Make the files of one component again."""
        try:
            for index, loaded in enumerate(self._files(*self._saved.components[number])):
                self._note(Place(number, index), loaded)
            failure: FdboxError = ManifestInvalid("the component does not have it")
        except FdboxError as error:
            failure = error
        for place in [place for place in self._wanted if place.component == number]:
            self._note(place, failure)

    def _files(self, compatible: str, token: int) -> Iterator[Loaded]:
        kind = registry.by_compatible(compatible)
        with self._delivery.take(token) as stored:
            tree = manifest.fetch(stored.fileno())
        return kind.load(tree, self._arrivals)

    def _note(self, place: Place, loaded: Loaded) -> None:
        """Give one open file description to all entries that share it, or tell why there is none."""
        entries = self._wanted.pop(place, [])
        if isinstance(loaded, FdboxError):
            self._lose(entries, str(loaded))
            return
        with loaded.fd as fd:
            for entry in entries:
                self.entries[entry.name] = Arrived(fd.dup(), entry.label)
                self._made.setdefault(place, self.entries[entry.name].fd.fileno())
        for sentence in loaded.lost:
            self._lose(entries[:1], sentence)

    def _lose(self, entries: Sequence[SavedEntry], reason: str) -> None:
        self.losses += [Loss(self._saved.box, entry.name, reason) for entry in entries]
