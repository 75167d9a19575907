"""What came from the last incarnation: find it, check it, make the entries again, and let the carrier go.

`arrive` yields each step, and goes on when it is asked for the next: what a step brought must be safe by then, for a
delivery that is finished, or whose last holder dies, is gone. A process that comes after one that died on the way
gives what that one had received (`Past`), and nothing comes twice or is missed.

An entry that cannot be made again is a `Loss`, named; all others go on. A box whose manifest cannot be read is a loss
as a whole, and its delivery is never finished, so that its memory is not freed under somebody who may still
understand it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, ManifestInvalid
from fdbox.handover import manifest
from fdbox.handover.manifest import FIRST_TOKEN, Index, Manifest, SavedEntry
from fdbox.kinds import registry
from fdbox.linux.fd import OwnedFd, close_all

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator

    from fdbox.kinds.base import Loaded
    from fdbox.model import BoxKey
    from fdbox.ports import Carrier, Delivery


@dataclass(frozen=True, slots=True)
class Loss:
    """What did not arrive; `entry` is empty for a whole box, and `box` None for what was not even named."""

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
    """Nothing more is to come; the index is finished next."""


Step = Received | BoxCame | Finished | AllCame | Loss


@dataclass(slots=True)
class Past:
    """What a process before this one has done: deliveries that are not finished, and sessions whose boxes are safe."""

    sessions: dict[str, OwnedFd] = field(default_factory=dict)
    done: Collection[str] = ()


def arrive(carrier: Carrier[OwnedFd], running: str, past: Past) -> Iterator[Step]:
    """Yield everything that the last incarnation sent by this carrier. Raises nothing that one entry could cause.

    Raises:
        KernelError: the carrier itself cannot be asked.
    """
    delivery = yield from _receive(carrier, manifest.INDEX_SESSION, past)
    if delivery is None:
        return
    try:
        index = _read_index(delivery, running)
    except FdboxError as error:
        yield Loss(None, "", f"the index of what came: {error}")
        return
    for session, box in index.boxes:
        if session not in past.done:
            yield from _box(carrier, running, past, session, box)
        elif (had := past.sessions.pop(session, None)) is not None:
            carrier.resume(session, had).finish()
            yield Finished(session)
    yield AllCame()
    delivery.finish()
    yield Finished(manifest.INDEX_SESSION)


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
    carrier: Carrier[OwnedFd], running: str, past: Past, session: str, box: BoxKey
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
        entries, losses = load_box(delivery, running)
    except FdboxError as error:
        yield Loss(box, "", str(error))
        return
    yield BoxCame(session, box, entries, losses)
    delivery.finish()
    yield Finished(session)


def load_box(delivery: Delivery[OwnedFd], running: str) -> tuple[dict[str, Arrived], list[Loss]]:
    """Return the entries of one delivered box, and what of them could not be made again.

    Raises:
        ManifestInvalid: the manifest cannot be read.
        SameIncarnation: it was saved by the kernel that runs now.
    """
    with delivery.take(FIRST_TOKEN) as stored:
        saved = manifest.read_manifest(manifest.fetch(stored.fileno()), running)
    entries: dict[str, Arrived] = {}
    losses: list[Loss] = []
    try:
        for number in range(len(saved.components)):
            _load_component(saved, number, delivery, entries, losses)
    except BaseException:
        close_all(arrived.fd for arrived in entries.values())
        raise
    ordered = {entry.name: entries[entry.name] for entry in saved.entries if entry.name in entries}
    return ordered, losses


def _load_component(
    saved: Manifest,
    number: int,
    delivery: Delivery[OwnedFd],
    entries: dict[str, Arrived],
    losses: list[Loss],
) -> None:
    wanted: dict[int, list[SavedEntry]] = {}
    for entry in saved.entries:
        if entry.component == number:
            wanted.setdefault(entry.file, []).append(entry)
    for entry, outcome in _outcomes(saved.components[number], delivery, wanted):
        if isinstance(outcome, OwnedFd):
            entries[entry.name] = Arrived(outcome, entry.label)
        else:
            losses.append(Loss(saved.box, entry.name, str(outcome)))


def _outcomes(
    component: tuple[str, int], delivery: Delivery[OwnedFd], wanted: dict[int, list[SavedEntry]]
) -> Iterator[tuple[SavedEntry, Loaded]]:
    """Yield every wanted entry once, with its descriptor or why it has none."""
    left = dict(wanted)
    try:
        compatible, token = component
        kind = registry.by_compatible(compatible)
        with delivery.take(token) as stored:
            tree = manifest.fetch(stored.fileno())
        for index, loaded in enumerate(kind.load(tree, delivery.take)):
            yield from _share(loaded, left.pop(index, []))
        failure: FdboxError = ManifestInvalid("the component does not have it")
    except FdboxError as error:
        failure = error
    for entries in left.values():
        for entry in entries:
            yield entry, failure


def _share(loaded: Loaded, entries: list[SavedEntry]) -> Iterator[tuple[SavedEntry, Loaded]]:
    """Yield one open file description to all entries that share it."""
    if not isinstance(loaded, OwnedFd):
        yield from ((entry, loaded) for entry in entries)
        return
    with loaded:
        for entry in entries:
            yield entry, loaded.dup()
