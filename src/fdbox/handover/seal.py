"""Sealing a box: freeze every entry, save it, and give it all to the carrier. A failure undoes what was done.

What is saved stays valid as long as the `SealedBox` is not thawed: the carrier's shipment hangs on this process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import CannotCarry, FdboxError
from fdbox.handover import manifest, order
from fdbox.handover.manifest import FIRST_TOKEN, Index, Manifest, SavedEntry
from fdbox.kinds import registry
from fdbox.kinds.base import CarriedKind, Uncarried, numbered
from fdbox.kinds.freight import Freight, Place
from fdbox.kinds.look import Company, Look, OpenFile, look
from fdbox.linux import kcmp
from fdbox.model import BoxKey, Carriage, Description
from fdbox.ports import Parcel, ParcelRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from fdbox.fdt.tree import Node
    from fdbox.linux.fd import OwnedFd
    from fdbox.ports import Carrier, Kernel, Shipment

#: the carrier that takes streams
STREAMS = "image"
#: left free whatever is saved, so that the machine can go on until it jumps
RESERVE = 64 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """The files of one kind in one box, and what was saved of them."""

    kind: CarriedKind
    files: tuple[OpenFile, ...]
    component: Node


class Load(NamedTuple):
    """What takes one entry across, and how many bytes that are."""

    entry: str
    kind: str
    carrier: str
    size: int


@dataclass(slots=True)
class SealedBox:
    """A saved box; `thaw` lets the originals go on."""

    box: BoxKey
    parts: tuple[Part, ...]
    shipment: Shipment
    freight: Freight
    manifest: OwnedFd

    def verify(self) -> None:
        """Check that nothing was changed after it was saved; LateWrite names what was."""
        with _naming(self.box):
            for part in self.parts:
                part.kind.verify(part.files, part.component, self.freight)

    @property
    def lost(self) -> list[tuple[str, str]]:
        """What of the entries cannot cross, as far as it is known: (entry, sentence)."""
        return [
            (file.entry, sentence)
            for part in self.parts
            for file, node in zip(part.files, numbered(part.component, "file"), strict=True)
            if node.has("lost")
            for sentence in node.texts("lost")
        ]

    @property
    def loads(self) -> list[Load]:
        """What takes each entry, and how many bytes of it; what entries share counts for the first."""
        found = {
            name: Load(name, file.description.kind, self.shipment.carrier, 0)
            for part in self.parts
            for file in part.files
            for name in file.entries
        }
        for parcel in self.freight.parcels:
            before = found[self.freight.entry_of[parcel.token]]
            if parcel.extents is None:
                more = before._replace(size=before.size + os.fstat(parcel.fd).st_size)
            else:
                length = sum(length for _, length in parcel.extents)
                more = before._replace(carrier=STREAMS, size=before.size + length)
            found[before.entry] = more
        return list(found.values())

    def thaw(self) -> None:
        """Drop what was saved and let the originals go on, which they do in any case; KernelError if it cannot be dropped."""
        try:
            self.shipment.discard()
        finally:
            self._let_go()

    def end(self) -> None:
        """Let go of all that this process holds, for its end: what can outlive it stays."""
        self.shipment.release()
        self._let_go()

    def _let_go(self) -> None:
        self.manifest.close()
        self.freight.close()
        for part in reversed(self.parts):
            for file in reversed(part.files):
                part.kind.thaw(file)


def seal(
    box: BoxKey,
    entries: Mapping[str, tuple[int, Description]],
    carrier: Carrier[OwnedFd],
    kernel: Kernel,
) -> SealedBox:
    """Return the box sealed; `entries` are descriptors, borrowed, which must stay open until it is thawed.

    Raises:
        CannotCarry: naming the entry that nothing takes, and why.
        NoRoom: saving it takes more memory than there is.
        KernelError: the carrier refused.
    In every case all is as it was.
    """
    carrier = carrier.now()
    company, plan = _look_over(box, entries, carrier)
    with contextlib.ExitStack() as undo:
        for kind, files in plan:
            for file in files:
                kind.freeze(file)
                undo.callback(kind.thaw, file)
        freight = Freight(
            kernel,
            kernel.free_memory() - RESERVE,
            company,
            _places(plan),
            in_place=carrier.in_place,
            streams=carrier.streams,
        )
        undo.callback(freight.close)
        with _naming(box):
            parts = tuple(_save(kind, files, freight) for kind, files in plan)
        saved = Manifest(
            kernel.incarnation(),
            box,
            tuple(_saved_entries(entries, parts)),
            tuple(_components(parts, freight)),
        )
        first = manifest.store(manifest.write_manifest(saved))
        undo.callback(first.close)
        shipment = carrier.ship(f"fdbox-{secrets.token_hex(16)}")
        undo.callback(shipment.discard)
        _load_up(shipment, [*freight.parcels, Parcel(first.fileno(), FIRST_TOKEN)], freight)
        undo.pop_all()
    return SealedBox(box, parts, shipment, freight, first)


def check(
    box: BoxKey, entries: Mapping[str, tuple[int, Description]], carrier: Carrier[OwnedFd]
) -> None:
    """Do all that `seal` does before it stops anything; CannotCarry, KernelError as there."""
    _look_over(box, entries, carrier.now())


def write_index(
    sealed: Sequence[SealedBox],
    carrier: Carrier[OwnedFd],
    kernel: Kernel,
    replacing: Shipment | None = None,
) -> Shipment | None:
    """Return the shipment that tells the next incarnation what comes; None if nothing does.

    The one that it replaces is let go of, at the latest moment that the carrier allows.
    """
    if not sealed:
        if replacing is not None:
            replacing.discard()
        return None
    boxes = tuple((one.shipment.name, one.box) for one in sealed)
    tree = manifest.write_index(Index(kernel.incarnation(), boxes))
    with manifest.store(tree) as stored:
        shipment = carrier.now().ship(manifest.INDEX_SESSION, replacing)
        try:
            shipment.add([Parcel(stored.fileno(), FIRST_TOKEN)])
        except BaseException:
            shipment.discard()
            raise
    return shipment


def _look_over(
    box: BoxKey, entries: Mapping[str, tuple[int, Description]], carrier: Carrier[OwnedFd]
) -> tuple[Company, Plan]:
    """Return the open files, and the components they are to be in; CannotCarry names what nothing takes."""
    _refuse_uncarried(box, entries)
    company = Company(_open_files(entries))
    kinds = {file: _kind_of(box, file, carrier) for file in company.files}
    with _naming(box):
        return company, _plan(company, kinds)


def _open_files(entries: Mapping[str, tuple[int, Description]]) -> list[OpenFile]:
    """Return the open file descriptions behind the entries, as they are now."""
    names = list(entries)
    looks: list[Look] = [look(fd) for fd, _ in entries.values()]
    inodes = {seen.fd: seen.inode for seen in looks}
    groups = order.share([seen.fd for seen in looks], inodes.__getitem__, kcmp.order)
    return [
        OpenFile(
            looks[group[0]],
            _fresh(looks[group[0]], entries[names[group[0]]][1]),
            tuple(names[index] for index in group),
        )
        for group in groups
    ]


def _fresh(seen: Look, before: Description) -> Description:
    """Return what a descriptor is now; a memfd that came from the last kernel has lost its name, and `put` knows it."""
    now = registry.recognise(seen).describe(seen)
    return now._replace(label=now.label or before.label)


def _refuse_uncarried(box: BoxKey, entries: Mapping[str, tuple[int, Description]]) -> None:
    """Refuse by what `put` has seen: looking again could block, in a file system that its owner controls."""
    for name, (_, description) in entries.items():
        kind = registry.by_name(description.kind)
        if isinstance(kind, Uncarried):
            raise cannot_carry(box, name, kind.name, Carriage(None, kind.obstacle, kind.remedy))


def _kind_of(box: BoxKey, file: OpenFile, carrier: Carrier[OwnedFd]) -> CarriedKind:
    name = file.description.kind
    carriage = registry.by_name(name).carriage(file.look, carrier)
    if carriage.carrier is None:
        raise cannot_carry(box, file.entry, name, carriage)
    return registry.CARRIED[name]


def cannot_carry(box: BoxKey, entry: str, kind: str, why: Carriage) -> CannotCarry:
    """Return the error for an entry that nothing takes."""
    return CannotCarry(
        f"entry {entry!r} of box {box.name!r} is a {kind}: {why.obstacle}",
        remedy=why.remedy,
        box=box.name,
        entry=entry,
        kind=kind,
    )


@contextlib.contextmanager
def _naming(box: BoxKey) -> Iterator[None]:
    """Add the box to errors that know only the entry."""
    try:
        yield
    except FdboxError as error:
        error.context.setdefault("box", box.name)
        raise


#: The components to be: a kind, and its files; each after all that its files depend on.
Plan = list[tuple["CarriedKind", list[OpenFile]]]


def _plan(company: Company, kinds: Mapping[OpenFile, CarriedKind]) -> Plan:
    names = {file: file.entry for file in company.files}
    needs = {file: kind.depends_on(file, company) for file, kind in kinds.items()}
    plan: Plan = []
    for level in order.levels(names, needs):
        by_kind: dict[str, list[OpenFile]] = {}
        for file in level:
            by_kind.setdefault(kinds[file].name, []).append(file)
        plan += [(registry.CARRIED[name], files) for name, files in by_kind.items()]
    return plan


def _places(plan: Plan) -> dict[OpenFile, Place]:
    return {
        file: Place(component, index)
        for component, (_, files) in enumerate(plan)
        for index, file in enumerate(files)
    }


def _save(kind: CarriedKind, files: Sequence[OpenFile], freight: Freight) -> Part:
    component = kind.save(files, freight)
    component.set_text("compatible", kind.compatible)
    return Part(kind, tuple(files), component)


def _components(parts: Sequence[Part], freight: Freight) -> Iterator[tuple[str, int]]:
    """Send every component along; yield its format and token."""
    for part in parts:
        yield (
            part.kind.compatible,
            freight.give(manifest.store(part.component), part.files[0].entry),
        )


def _saved_entries(names: Iterable[str], parts: Sequence[Part]) -> Iterator[SavedEntry]:
    """Yield the entries in the order of the box."""
    places = {
        name: (file.description.label, number, index)
        for number, part in enumerate(parts)
        for index, file in enumerate(part.files)
        for name in file.entries
    }
    return (SavedEntry(name, *places[name]) for name in names)


def _load_up(shipment: Shipment, parcels: Sequence[Parcel], freight: Freight) -> None:
    freight.shipment = shipment
    try:
        shipment.add(parcels)
    except ParcelRefused as error:
        entry = freight.entry_of.get(error.token, "")
        raise CannotCarry(
            f"entry {entry!r}: {error.message}", remedy=error.remedy, entry=entry
        ) from error
