"""What came from the last incarnation: find it, check it, make the entries again, and let the carrier go.

An entry that cannot be made again is a `Loss`, named; all others go on. A box whose manifest cannot be read is a loss
as a whole, and its shipment is kept until the daemon ends, so that its memory is not freed under somebody who may
still understand it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, ManifestInvalid
from fdbox.handover import manifest
from fdbox.handover.manifest import FIRST_TOKEN, Manifest, SavedEntry
from fdbox.kinds import registry
from fdbox.linux.fd import OwnedFd, close_all

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@dataclass(slots=True)
class Arrival:
    """Everything that came."""

    boxes: dict[BoxKey, dict[str, Arrived]] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    #: deliveries that could not be read, which are kept open
    kept: list[Delivery[OwnedFd]] = field(default_factory=list)


def arrive(carrier: Carrier[OwnedFd], running: str) -> Arrival:
    """Return everything that the last incarnation sent by this carrier. Raises nothing that one entry could cause.

    Raises:
        KernelError: the carrier itself cannot be asked.
    """
    arrival = Arrival()
    delivery = carrier.receive(manifest.INDEX_SESSION)
    if delivery is None:
        return arrival
    try:
        with delivery.take(FIRST_TOKEN) as stored:
            index = manifest.read_index(manifest.fetch(stored.fileno()), running)
    except FdboxError as error:
        arrival.losses.append(Loss(None, "", f"the index of what came: {error}"))
        arrival.kept.append(delivery)
        return arrival
    for session, box in index.boxes:
        _receive_box(arrival, carrier, session, box, running)
    delivery.finish()
    return arrival


def _receive_box(
    arrival: Arrival, carrier: Carrier[OwnedFd], session: str, box: BoxKey, running: str
) -> None:
    try:
        delivery = carrier.receive(session)
        if delivery is None:
            raise ManifestInvalid(
                "it was sealed, and did not come", remedy="was the kernel loaded by somebody else?"
            )
    except FdboxError as error:
        arrival.losses.append(Loss(box, "", str(error)))
        return
    try:
        entries, losses = load_box(delivery, running)
    except FdboxError as error:
        arrival.losses.append(Loss(box, "", str(error)))
        arrival.kept.append(delivery)
        return
    arrival.boxes[box] = entries
    arrival.losses += losses
    delivery.finish()


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
