"""The nouns of fdbox, frozen: what a box, an entry and their descriptions are."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from fdbox.errors import InvalidName

MAX_NAME_BYTES = 255


class BoxState(enum.Enum):
    """Where a box stands: changes are taken only while it is open."""

    OPEN = "open"
    SEALING = "sealing"
    SEALED = "sealed"


@dataclass(frozen=True, slots=True, order=True)
class BoxKey:
    """What names a box: two users may each have a box of the same name, and neither learns of the other's."""

    owner: int
    name: str


class Carriage(NamedTuple):
    """What takes an entry across a kexec on this machine: the carrier's name, or why nothing does and what to do."""

    carrier: str | None
    obstacle: str = ""
    remedy: str = ""


class Description(NamedTuple):
    """What a kind says of a descriptor: the object's size in bytes (None where it has none) and a label for people."""

    kind: str
    size: int | None
    label: str


def check_name(name: str, what: str) -> str:
    """Return `name` if a box or entry may be called so.

    Raises:
        InvalidName: it is empty, over 255 bytes, has a slash, or something that cannot be printed (NUL among them).
    """
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"the {what} name is not UTF-8", name=ascii(name)) from None
    if not 1 <= length <= MAX_NAME_BYTES:
        raise InvalidName(f"the {what} name has {length} bytes", name=name[:64])
    if "/" in name or not name.isprintable():
        raise InvalidName(
            f"the {what} name {name!r} has a character that is not allowed", name=name
        )
    return name
