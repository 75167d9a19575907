"""Every kind, and which one a descriptor is of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.errors import ManifestInvalid
from fdbox.kinds.memfd import Memfd
from fdbox.kinds.others import OTHERS, UNKNOWN, Uncarried

if TYPE_CHECKING:
    from fdbox.kinds.base import CarriedKind, Kind, Look

#: The kinds that can be saved and made again, by name.
CARRIED: dict[str, CarriedKind] = {kind.name: kind for kind in (Memfd(),)}

#: All of them. One descriptor is of exactly one kind.
KINDS: tuple[Kind, ...] = (*CARRIED.values(), *OTHERS)


def recognise(seen: Look) -> Kind:
    """Return the kind of a descriptor; `unknown` where none of ours says yes."""
    for kind in KINDS:
        if kind.recognise(seen):
            return kind
    return UNKNOWN


def by_name(name: str) -> Uncarried:
    """Return what is known of a kind that nothing carries."""
    return next((kind for kind in OTHERS if kind.name == name), UNKNOWN)


def by_compatible(compatible: str) -> CarriedKind:
    """Return the kind that writes and reads components of this format.

    Raises:
        ManifestInvalid: there is none here.
    """
    for kind in CARRIED.values():
        if kind.compatible == compatible:
            return kind
    known = ", ".join(kind.compatible for kind in CARRIED.values())
    raise ManifestInvalid(f"a component is {compatible!r}, and this fdbox knows {known}")
