"""Calls and replies as the boxes' nouns, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from fdbox.model import BoxKey
from fdbox.service.access import ROOT, resolve_owner
from fdbox.varlink import interface

if TYPE_CHECKING:
    from fdbox.handover.arrive import Loss
    from fdbox.model import Carriage, Description
    from fdbox.service.access import Peer
    from fdbox.service.boxes import Box
    from fdbox.service.connection import Call
    from fdbox.service.vault import Held

StructT = TypeVar("StructT", bound=msgspec.Struct)


def parameters(cls: type[StructT], call: Call) -> StructT:
    """Return a call's parameters, which dispatch has made of that type."""
    assert isinstance(call.parameters, cls)
    return call.parameters


def key(peer: Peer, request: interface.BoxRequest | interface.NamesRequest) -> BoxKey:
    """Return the box that a call means; PermissionDenied."""
    return BoxKey(resolve_owner(peer, request.owner, request.box), request.box)


def box(found: Box[Held]) -> interface.Box:
    """Return a box as it is listed."""
    return interface.Box(
        name=found.key.name,
        owner=found.key.owner,
        state=found.state.value,
        entries=len(found.entries),
    )


def entry(name: str, description: Description, carriage: Carriage) -> interface.Entry:
    """Return an entry as it is listed."""
    return interface.Entry(
        name=name,
        kind=description.kind,
        label=description.label,
        size=description.size,
        carrier=carriage.carrier,
        obstacle=carriage.obstacle,
        remedy=carriage.remedy,
    )


def may_know(peer: Peer, lost: Loss) -> bool:
    """Return whether a peer may be told of a loss: his own, or root."""
    return peer.uid == ROOT or (lost.box is not None and lost.box.owner == peer.uid)


def loss(lost: Loss) -> interface.Loss:
    """Return a loss as it is told; of what was not even named the box is empty, and root's."""
    whose = lost.box or BoxKey(ROOT, "")
    return interface.Loss(box=whose.name, owner=whose.owner, entry=lost.entry, reason=lost.reason)
