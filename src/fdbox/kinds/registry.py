"""Every kind, and which one a descriptor is of. A module of this package registers its kinds by listing them in `KINDS`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, NamedTuple

from fdbox import kinds
from fdbox.errors import ManifestInvalid
from fdbox.kinds.base import Uncarried

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeGuard

    from fdbox.kinds.base import CarriedKind, Kind
    from fdbox.kinds.look import Look


#: modules that are no kinds, and that others import
_NO_KINDS = ("base", "freight", "look", "registry")


def _is_carried(kind: Kind) -> TypeGuard[CarriedKind]:
    return hasattr(kind, "compatible")


def _found() -> Iterator[Kind]:
    """Yield the kinds of every module, in the order of their names; memfd first, for it is what most boxes are full of."""
    names = [module.name for module in pkgutil.iter_modules(kinds.__path__)]
    for name in sorted(names, key=lambda name: (name != "memfd", name)):
        if name not in _NO_KINDS and not name.startswith("_"):
            yield from importlib.import_module(f"{kinds.__name__}.{name}").KINDS


#: All of them. One descriptor is of exactly one kind.
KINDS: tuple[Kind, ...] = tuple(_found())

#: The kinds that can be saved and made again, by name.
CARRIED: dict[str, CarriedKind] = {kind.name: kind for kind in KINDS if _is_carried(kind)}

#: What none of them is.
UNKNOWN = Uncarried(
    "unknown", "anything else", lambda _: False, "fdbox does not know this kind of descriptor"
)


class Row(NamedTuple):
    """A kind, as people read of it. What nothing carries keeps nothing."""

    name: str
    about: str
    keeps: str
    loses: str


def table() -> list[Row]:
    """Return a row for every kind, what can be carried first."""
    kinds = sorted((*KINDS, UNKNOWN), key=lambda kind: (not kind.keeps, kind is UNKNOWN))
    return [Row(kind.name, kind.about, kind.keeps, kind.loses) for kind in kinds]


def recognise(seen: Look) -> Kind:
    """Return the kind of a descriptor; `unknown` where none of ours says yes."""
    for kind in KINDS:
        if kind.recognise(seen):
            return kind
    return UNKNOWN


def by_name(name: str) -> Kind:
    """Return the kind of that name; `unknown` where there is none."""
    return next((kind for kind in KINDS if kind.name == name), UNKNOWN)


def by_compatible(compatible: str) -> CarriedKind:
    """Return the kind that reads components of this format.

    Raises:
        ManifestInvalid: there is none here, or only for older ones.
    """
    for kind in CARRIED.values():
        if compatible in kind.reads:
            return kind
    stem = compatible.rpartition("-v")[0]
    ours = [kind.compatible for kind in CARRIED.values() if kind.compatible.startswith(f"{stem}-v")]
    known = f"knows {ours[0]!r}" if ours else "does not know this kind"
    raise ManifestInvalid(f"a component is {compatible!r}, and this fdbox {known}")
