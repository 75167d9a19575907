"""What a kind has at hand: where its files' parcels go while a box is sealed, and where they come from at an arrival."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import CannotCarry, FdboxError
from fdbox.kinds.look import Company, OpenFile
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.ports import Parcel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fdbox.ports import Kernel, Shipment, Stream


class Place(NamedTuple):
    """Where an open file description is saved: the number of a component, and of a file in it."""

    component: int
    file: int


@dataclass(slots=True)
class Freight:
    """Collects the parcels of one box. Token 0 is left to the manifest.

    `free` is what can be taken without driving anything into the OOM killer; `take_room` counts it down.
    """

    kernel: Kernel
    free: int
    company: Company = field(default_factory=lambda: Company(()))
    places: Mapping[OpenFile, Place] = field(default_factory=dict)
    #: memory can be lent as it is, and arrives with what is written to it late
    in_place: bool = True
    #: `stream` can be asked for
    streams: bool = False
    parcels: list[Parcel] = field(default_factory=list)
    #: the entry that a parcel belongs to, for errors
    entry_of: dict[int, str] = field(default_factory=dict)
    #: what takes the parcels, once it has taken them
    shipment: Shipment | None = None
    _own: list[OwnedFd] = field(default_factory=list)

    def lend(self, fd: int, entry: str) -> int:
        """Send a borrowed descriptor along; return its token."""
        return self._add(fd, entry, None)

    def stream(self, fd: int, extents: Sequence[tuple[int, int]], entry: str) -> int:
        """Send bytes of a borrowed file along, one extent behind the other; return their token."""
        return self._add(fd, entry, extents)

    def is_unchanged(self, token: int) -> bool:
        """Return whether the bytes of a stream are still those that were sent."""
        assert self.shipment is not None, "nothing was sent yet"
        return self.shipment.is_unchanged(token)

    def give(self, fd: OwnedFd, entry: str) -> int:
        """Send a descriptor along that the freight owns from now on; return its token."""
        self._own.append(fd)
        return self.lend(fd.fileno(), entry)

    def sent(self, token: int) -> int:
        """Return the descriptor that goes under a token, borrowed."""
        return self.parcels[token - 1].fd

    def is_stream(self, token: int) -> bool:
        """Return whether bytes go under a token, rather than a descriptor."""
        return self.parcels[token - 1].extents is not None

    def close(self) -> None:
        """Close what was given."""
        own, self._own = self._own, []
        close_all(own)

    def _add(self, fd: int, entry: str, extents: Sequence[tuple[int, int]] | None) -> int:
        token = len(self.parcels) + 1
        self.parcels.append(Parcel(fd, token, extents))
        self.entry_of[token] = entry
        return token


def _no_stream(token: int) -> Stream | None:
    """Return that everything is to be taken."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What a kind can ask for while it makes its files again."""

    kernel: Kernel
    #: returns what was preserved under a token; FdboxError if nothing came
    take: Callable[[int], OwnedFd]
    #: what was made again so far, borrowed
    made: Mapping[Place, int] = field(default_factory=dict)
    #: the user whose box it is: makes nothing for him where he could not
    owner: int = 0
    #: returns the bytes that came under a token, where they have to be put in their place; None: `take` it
    stream: Callable[[int], Stream | None] = _no_stream

    def file(self, place: Place) -> int:
        """Return a descriptor of what this file depends on, borrowed.

        Raises:
            CannotCarry: that one did not arrive.
        """
        try:
            return self.made[place]
        except KeyError:
            raise CannotCarry(
                "what it depends on did not arrive", remedy="see why that one was lost"
            ) from None


@dataclass(frozen=True, slots=True)
class Made:
    """A file that is there again, and what of it is not: sentences for those who have to know."""

    fd: OwnedFd
    lost: tuple[str, ...] = ()


#: What `load` returns for each file of a component: it, or why there is none.
Loaded = Made | FdboxError
