"""The contract of a kind: recognise, describe, freeze, thaw, save, verify, load, and what it depends on.

A kind saves all descriptors of its own in a box at once, into one FDT (its *component*), so that it can change its
format without touching another's. What the component needs beside it (memory) goes to the carrier as a *parcel*: a
descriptor under a token. Two entries that share one open file description are one `OpenFile`: the caller has seen to
that, and dups it at arrival.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fdbox.errors import FdboxError, InvalidDescriptor, KernelError
from fdbox.linux import fdinfo, memfd
from fdbox.linux.fd import OwnedFd, close_all

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.model import Carriage, Description
    from fdbox.ports import Kernel

#: What `load` returns for each file of a component: its descriptor, or why there is none.
Loaded = OwnedFd | FdboxError


class Look(NamedTuple):
    """What is seen of a descriptor from outside; enough to recognise its kind."""

    fd: int
    status: os.stat_result
    #: what /proc/self/fd/N points to (linux/fdinfo.py)
    link: str
    #: O_* of the open file description
    flags: int

    @property
    def inode(self) -> tuple[int, int]:
        """Device and inode number."""
        return self.status.st_dev, self.status.st_ino


def glance(fd: int) -> Look | None:
    """Return what can be seen of a borrowed descriptor, or None if `look` and `recognise` could block.

    A file of FUSE can hang whoever looks at it. What has no path is the kernel's own, and so is what takes seals; the
    name alone proves nothing, for a file can be called "memfd:".

    Raises:
        InvalidDescriptor: it is not open.
    """
    link = _link(fd)
    if link.startswith("/") and not memfd.accepts_seals(fd):
        return None
    return _look(fd, link)


def look(fd: int) -> Look:
    """Return what can be seen of a borrowed descriptor; errors as `glance`. It may block."""
    return _look(fd, _link(fd))


def _link(fd: int) -> str:
    try:
        return fdinfo.link_of(fd)
    except KernelError as error:
        raise InvalidDescriptor(error.message) from error


def _look(fd: int, link: str) -> Look:
    try:
        return Look(fd, os.fstat(fd), link, fcntl.fcntl(fd, fcntl.F_GETFL))
    except OSError as error:
        raise InvalidDescriptor(f"descriptor {fd} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One open file description to save; `entries` are the names of the entries that share it."""

    look: Look
    description: Description
    entries: tuple[str, ...]

    @property
    def fd(self) -> int:
        """A descriptor of it, borrowed."""
        return self.look.fd


@dataclass(slots=True)
class Freight:
    """Collects the parcels of one box. Token 0 is left to the manifest.

    `free` is what can be taken without driving anything into the OOM killer; `take_room` counts it down.
    """

    kernel: Kernel
    free: int
    parcels: list[tuple[int, int]] = field(default_factory=list)
    #: the entry that a parcel belongs to, for errors
    entry_of: dict[int, str] = field(default_factory=dict)
    _own: list[OwnedFd] = field(default_factory=list)

    def lend(self, fd: int, entry: str) -> int:
        """Send a borrowed descriptor along; return its token."""
        token = len(self.parcels) + 1
        self.parcels.append((fd, token))
        self.entry_of[token] = entry
        return token

    def give(self, fd: OwnedFd, entry: str) -> int:
        """Send a descriptor along that the freight owns from now on; return its token."""
        self._own.append(fd)
        return self.lend(fd.fileno(), entry)

    def close(self) -> None:
        """Close what was given."""
        own, self._own = self._own, []
        close_all(own)


#: Returns what was preserved under a token.
Take = Callable[[int], OwnedFd]


class Kind(Protocol):
    """One kind of descriptor."""

    @property
    def name(self) -> str:
        """What it is called, in lists and manifests."""

    def recognise(self, seen: Look) -> bool:
        """Return whether a descriptor is of this kind; no two kinds say yes to one."""

    def describe(self, seen: Look) -> Description:
        """Return what people are told of it."""

    def carriage(self, seen: Look, carrier: Carriage) -> Carriage:
        """Return what carries it, given what the machine has; else the obstacle and the remedy."""


class CarriedKind(Kind, Protocol):
    """A kind that can be saved and made again."""

    @property
    def compatible(self) -> str:
        """The format of its component, "fdbox,<kind>-v<n>"."""

    def depends_on(self, seen: Look) -> Sequence[tuple[int, int]]:
        """Return the inodes that must be there before this one can be made again."""

    def freeze(self, file: OpenFile) -> None:
        """Stop it from changing, as far as that can be undone by `thaw`."""

    def thaw(self, file: OpenFile) -> None:
        """Undo `freeze`, in place; never fails for what `freeze` has done."""

    def save(self, files: Sequence[OpenFile], freight: Freight) -> Node:
        """Return the component of `files`, in whose order `load` answers. Changes none of them.

        Raises:
            CannotCarry, NoRoom: naming the entry.
        """

    def verify(self, files: Sequence[OpenFile], component: Node, sent: Mapping[int, int]) -> None:
        """Check, when everybody has stopped, that what was saved is what is there; `sent` is token -> descriptor.

        Raises:
            CannotCarry: it was changed after it was saved; names the entry.
        """

    def load(self, component: Node, take: Take) -> Iterator[Loaded]:
        """Yield, file by file in the order of `save`, each made again or why it cannot be.

        Raises:
            FdtError: the component as a whole makes no sense.
        """
