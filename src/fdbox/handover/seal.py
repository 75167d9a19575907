"""Sealing a box: freeze every entry, save it, and give it all to the carrier. A failure undoes what was done.

What is saved stays valid as long as the `SealedBox` is not thawed: the carrier's shipment hangs on this process.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdbox.errors import CannotCarry, FdboxError
from fdbox.handover import manifest, order
from fdbox.handover.manifest import FIRST_TOKEN, Index, Manifest, SavedEntry
from fdbox.kinds import registry
from fdbox.kinds.base import CarriedKind, Freight, Look, OpenFile, look
from fdbox.linux import kcmp
from fdbox.model import BoxKey, Carriage, Description
from fdbox.ports import ParcelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fdbox.fdt.tree import Node
    from fdbox.linux.fd import OwnedFd
    from fdbox.ports import Carrier, Kernel, Shipment

#: left free whatever is saved, so that the machine can go on until it jumps
RESERVE = 64 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """The files of one kind in one box, and what was saved of them."""

    kind: CarriedKind
    files: tuple[OpenFile, ...]
    component: Node


@dataclass(slots=True)
class SealedBox:
    """A saved box; `thaw` lets the originals go on."""

    box: BoxKey
    parts: tuple[Part, ...]
    shipment: Shipment
    freight: Freight
    manifest: OwnedFd

    def verify(self) -> None:
        """Check that nothing was changed after it was saved; CannotCarry names what was."""
        sent = {token: fd for fd, token in self.freight.parcels}
        for part in self.parts:
            part.kind.verify(part.files, part.component, sent)

    def thaw(self) -> None:
        """Drop what was saved and let the originals go on."""
        self.shipment.discard()
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
    _refuse_uncarried(box, entries)
    files = _open_files(entries)
    has = carrier.carriage()
    kinds = [_kind_of(box, file, has) for file in files]
    _check_dependencies(files, kinds)
    with contextlib.ExitStack() as undo:
        for file, kind in zip(files, kinds, strict=True):
            kind.freeze(file)
            undo.callback(kind.thaw, file)
        freight = Freight(kernel, kernel.free_memory() - RESERVE)
        undo.callback(freight.close)
        parts = tuple(_save(box, files, kinds, freight))
        first = manifest.store(_write(box, parts, freight, kernel.incarnation()))
        undo.callback(first.close)
        shipment = carrier.ship(f"fdbox-{secrets.token_hex(16)}")
        undo.callback(shipment.discard)
        _load_up(shipment, [*freight.parcels, (first.fileno(), FIRST_TOKEN)], freight)
        undo.pop_all()
    return SealedBox(box, parts, shipment, freight, first)


def write_index(
    sealed: Sequence[SealedBox], carrier: Carrier[OwnedFd], kernel: Kernel
) -> Shipment | None:
    """Return the shipment that tells the next incarnation what comes; None if nothing does."""
    if not sealed:
        return None
    boxes = tuple((one.shipment.name, one.box) for one in sealed)
    tree = manifest.write_index(Index(kernel.incarnation(), boxes))
    with manifest.store(tree) as stored:
        shipment = carrier.ship(manifest.INDEX_SESSION)
        try:
            shipment.add([(stored.fileno(), FIRST_TOKEN)])
        except BaseException:
            shipment.discard()
            raise
    return shipment


def _open_files(entries: Mapping[str, tuple[int, Description]]) -> list[OpenFile]:
    """Return the open file descriptions behind the entries."""
    names = list(entries)
    looks: list[Look] = [look(fd) for fd, _ in entries.values()]
    inodes = {seen.fd: seen.inode for seen in looks}
    groups = order.share([seen.fd for seen in looks], inodes.__getitem__, kcmp.order)
    return [
        OpenFile(
            looks[group[0]], entries[names[group[0]]][1], tuple(names[index] for index in group)
        )
        for group in groups
    ]


def _refuse_uncarried(box: BoxKey, entries: Mapping[str, tuple[int, Description]]) -> None:
    """Refuse by what `put` has seen: looking again could block, in a file system that its owner controls."""
    for name, (_, description) in entries.items():
        if description.kind not in registry.CARRIED:
            kind = registry.by_name(description.kind)
            raise cannot_carry(box, name, kind.name, Carriage(None, kind.obstacle, kind.remedy))


def _kind_of(box: BoxKey, file: OpenFile, has: Carriage) -> CarriedKind:
    kind = registry.CARRIED[file.description.kind]
    carriage = kind.carriage(file.look, has)
    if carriage.carrier is None:
        raise cannot_carry(box, file.entries[0], kind.name, carriage)
    return kind


def cannot_carry(box: BoxKey, entry: str, kind: str, why: Carriage) -> CannotCarry:
    """Return the error for an entry that nothing takes."""
    return CannotCarry(
        f"entry {entry!r} of box {box.name!r} is a {kind}: {why.obstacle}",
        remedy=why.remedy,
        box=box.name,
        entry=entry,
        kind=kind,
    )


def _check_dependencies(files: Sequence[OpenFile], kinds: Sequence[CarriedKind]) -> None:
    names = {file.look.inode: file.entries[0] for file in files}
    needs = {
        file.look.inode: kind.depends_on(file.look) for file, kind in zip(files, kinds, strict=True)
    }
    order.arrange(names, needs)


def _save(
    box: BoxKey, files: Sequence[OpenFile], kinds: Sequence[CarriedKind], freight: Freight
) -> Iterator[Part]:
    for kind in dict.fromkeys(kinds):
        own = tuple(file for file, other in zip(files, kinds, strict=True) if other is kind)
        try:
            component = kind.save(own, freight)
        except FdboxError as error:
            error.context.setdefault("box", box.name)
            raise
        component.set_text("compatible", kind.compatible)
        yield Part(kind, own, component)


def _write(box: BoxKey, parts: Sequence[Part], freight: Freight, incarnation: str) -> Node:
    components = []
    entries = []
    for number, part in enumerate(parts):
        token = freight.give(manifest.store(part.component), part.files[0].entries[0])
        components.append((part.kind.compatible, token))
        entries += [
            SavedEntry(name, file.description.label, number, index)
            for index, file in enumerate(part.files)
            for name in file.entries
        ]
    return manifest.write_manifest(Manifest(incarnation, box, tuple(entries), tuple(components)))


def _load_up(shipment: Shipment, parcels: Sequence[tuple[int, int]], freight: Freight) -> None:
    try:
        shipment.add(parcels)
    except ParcelRefused as error:
        entry = freight.entry_of.get(error.token, "")
        raise CannotCarry(
            f"entry {entry!r}: {error.message}", remedy=error.remedy, entry=entry
        ) from error
