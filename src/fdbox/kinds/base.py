"""The contract of a kind: recognise, describe, freeze, thaw, save, verify, load, and what it depends on.

A kind saves all descriptors of its own in a box at once, into one FDT (its *component*), so that it can change its
format without touching another's. What the component needs beside it (memory) goes to the carrier as a *parcel*: a
descriptor under a token. Two entries that share one open file description are one `OpenFile`: the caller has seen to
that, and dups it at arrival.

Most kinds are an `Ordinary`: each file is a node `file@N` that one function writes and another reads.
"""

from __future__ import annotations

import abc
import bisect
import fcntl
import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from fdbox.errors import (
    CannotCarry,
    FdboxError,
    FdtError,
    InvalidDescriptor,
    KernelError,
    LateWrite,
)
from fdbox.fdt.tree import Node
from fdbox.linux import fdinfo, kcmp, memfd, sock
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import Carriage, Description
from fdbox.ports import Parcel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fdbox.linux.sock import Family
    from fdbox.ports import Carrier, Kernel, Shipment, Stream


class Look(NamedTuple):
    """What is seen of a descriptor from outside; enough to recognise its kind."""

    fd: int
    status: os.stat_result
    #: what /proc/self/fd/N points to (linux/fdinfo.py)
    link: str
    #: O_* of the open file description
    flags: int
    #: domain, type and protocol; None of what is no socket
    family: Family | None = None

    @property
    def inode(self) -> tuple[int, int]:
        """Device and inode number; all `anon_inode:` files share one."""
        return self.status.st_dev, self.status.st_ino

    @property
    def is_path(self) -> bool:
        """Whether it is an O_PATH descriptor, which says where a file is and opens nothing."""
        return bool(self.flags & os.O_PATH)


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
        status, flags = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL)
        family = sock.family(fd) if link.startswith("socket:") else None
    except OSError as error:
        raise InvalidDescriptor(f"descriptor {fd} cannot be read: {error.strerror}") from error
    return Look(fd, status, link, flags, family)


@dataclass(frozen=True, slots=True, eq=False)
class OpenFile:
    """One open file description to save; `entries` are the names of the entries that share it."""

    look: Look
    description: Description
    entries: tuple[str, ...]

    @property
    def fd(self) -> int:
        """A descriptor of it, borrowed."""
        return self.look.fd

    @property
    def entry(self) -> str:
        """The entry to name in an error."""
        return self.entries[0]

    def refuse(self, reason: str, remedy: str | None = None) -> CannotCarry:
        """Return the error that says why this one cannot be carried."""
        return CannotCarry(
            f"entry {self.entry!r} is a {self.description.kind}: {reason}",
            remedy=remedy,
            entry=self.entry,
            kind=self.description.kind,
        )


#: what kcmp(2) returns, as a sign
_SIGN = {0: 0, 1: -1, 2: 1}


def _compare(one: OpenFile, other: OpenFile) -> int:
    return _SIGN[kcmp.order(one.fd, other.fd)]


_by_kcmp = functools.cmp_to_key(_compare)


class Company:
    """The open file descriptions of one box, and how to find one among them."""

    def __init__(self, files: Iterable[OpenFile]) -> None:
        """Take them in the order of the box."""
        self.files: tuple[OpenFile, ...] = tuple(files)
        self._by_inode: dict[tuple[int, int], list[OpenFile]] = {}
        for file in self.files:
            self._by_inode.setdefault(file.look.inode, []).append(file)
        self._sorted: dict[tuple[int, int], list[OpenFile]] = {}

    def with_inode(self, device: int, inode: int) -> Sequence[OpenFile]:
        """Return the files of one inode; there are many for an anonymous one, and for a pipe."""
        return self._by_inode.get((device, inode), ())

    def find(self, device: int, inode: int, order: Callable[[int], int]) -> OpenFile | None:
        """Return the file of an inode for which `order` says 0; it says 1 and 2 as kcmp(2) does.

        All anonymous files are of one inode, so they are sorted, once, and searched: log n system calls.
        """
        key = (device, inode)
        if key not in self._sorted:
            self._sorted[key] = sorted(self.with_inode(*key), key=_by_kcmp)
        files = self._sorted[key]
        at = bisect.bisect_left(files, 0, key=lambda file: _SIGN[order(file.fd)])
        return files[at] if at < len(files) and order(files[at].fd) == 0 else None


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


class Kind(Protocol):
    """One kind of descriptor."""

    @property
    def name(self) -> str:
        """What it is called, in lists and manifests."""

    @property
    def about(self) -> str:
        """What it is, in a few words, for the table of kinds."""

    @property
    def keeps(self) -> str:
        """What is the same after the kernel was replaced; "" if nothing carries it."""

    @property
    def loses(self) -> str:
        """What is not the same; of what nothing carries, why, and what to do instead."""

    def recognise(self, seen: Look) -> bool:
        """Return whether a descriptor is of this kind; no two kinds say yes to one."""

    def describe(self, seen: Look) -> Description:
        """Return what people are told of it."""

    def carriage(self, seen: Look | None, carrier: Carrier[OwnedFd]) -> Carriage:
        """Return what carries it, or the obstacle and the remedy; `seen` is None where looking could block."""


class CarriedKind(Kind, Protocol):
    """A kind that can be saved and made again."""

    @property
    def compatible(self) -> str:
        """The format of its component, "fdbox,<kind>-v<n>"."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Every format that `load` takes: `compatible`, and older ones."""

    def depends_on(self, file: OpenFile, company: Company) -> Sequence[OpenFile]:
        """Return the files of the box that must be there before this one can be made again.

        Raises:
            CannotCarry: one of them is not in the box; names both.
        """

    def freeze(self, file: OpenFile) -> None:
        """Stop it from changing, as far as that can be undone by `thaw`."""

    def thaw(self, file: OpenFile) -> None:
        """Undo `freeze`, in place; never fails for what `freeze` has done."""

    def save(self, files: Sequence[OpenFile], freight: Freight) -> Node:
        """Return the component of `files`, in whose order `load` answers. Changes none of them.

        Raises:
            CannotCarry, NoRoom: naming the entry.
        """

    def verify(self, files: Sequence[OpenFile], component: Node, freight: Freight) -> None:
        """Check, when everybody has stopped, that what was saved is what is there.

        Raises:
            LateWrite: it was changed after it was saved; names the entry.
        """

    def load(self, component: Node, arrivals: Arrivals) -> Iterator[Loaded]:
        """Yield, file by file in the order of `save`, each made again or why it cannot be.

        Raises:
            FdtError: the component as a whole makes no sense.
        """


class Carried(abc.ABC):
    """What most kinds that can be carried have in common: nothing stops them, and they need nothing else."""

    name: ClassVar[str]
    about: ClassVar[str]
    keeps: ClassVar[str]
    loses: ClassVar[str] = ""
    compatible: ClassVar[str]
    #: formats before `compatible` that `load` takes, too
    older: ClassVar[tuple[str, ...]] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """See `CarriedKind`."""
        return (self.compatible, *self.older)

    def describe(self, seen: Look) -> Description:
        """Return its name, and what /proc calls it."""
        return Description(self.name, None, seen.link)

    def carriage(self, seen: Look | None, carrier: Carrier[OwnedFd]) -> Carriage:
        """Return what the machine has, or what stands in the way of this one."""
        obstacle = None if seen is None else self.obstacle(seen)
        return obstacle or carrier.carriage()

    def obstacle(self, seen: Look) -> Carriage | None:
        """Return why this one cannot be carried, if that is known at once."""
        return None

    def depends_on(self, file: OpenFile, company: Company) -> Sequence[OpenFile]:
        """Return nothing: it stands alone."""
        return ()

    def freeze(self, file: OpenFile) -> None:  # noqa: B027 - no kind has to
        """Do nothing: what cannot be stopped, `verify` notices."""

    def thaw(self, file: OpenFile) -> None:  # noqa: B027 - no kind has to
        """Do nothing: nothing was stopped."""


class Ordinary(Carried):
    """A kind of which every file is saved by itself, in the node `file@N`; a property `lost` names what cannot be.

    A kind that sends parcels has to say what `verify` compares (`same`), for writing again would send them again.
    """

    @abc.abstractmethod
    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Save one file in a node; CannotCarry or NoRoom, naming the entry."""

    @abc.abstractmethod
    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return one file made again. Any FdboxError or OSError is this file's loss, and no other's."""

    def same(self, file: OpenFile, saved: Node, freight: Freight) -> bool:
        """Return whether a file is as it was saved."""
        fresh = Node(saved.name)
        self._write(file, fresh, freight)
        return _without_losses(fresh) == _without_losses(saved)

    def save(self, files: Sequence[OpenFile], freight: Freight) -> Node:
        """Save every file; see `CarriedKind`."""
        root = Node("")
        for index, file in enumerate(files):
            self._write(file, root.add(f"file@{index}"), freight)
        return root

    def verify(self, files: Sequence[OpenFile], component: Node, freight: Freight) -> None:
        """Compare every file; see `CarriedKind`."""
        for index, file in enumerate(files):
            if not self.same(file, component.child(f"file@{index}"), freight):
                raise late_write(file)

    def load(self, component: Node, arrivals: Arrivals) -> Iterator[Loaded]:
        """Yield every file; see `CarriedKind`."""
        for node in numbered(component, "file"):
            yield self._read(node, arrivals)

    def _write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        try:
            self.write(file, node, freight)
        except OSError as error:
            raise file.refuse(f"it cannot be read: {error.strerror or error}") from error

    def _read(self, node: Node, arrivals: Arrivals) -> Loaded:
        return with_losses(node, attempt(lambda: self.read(node, arrivals), self.name))


def with_losses(node: Node, loaded: Loaded) -> Loaded:
    """Return what was made from a node, with what was known to be lost when that was written."""
    if isinstance(loaded, FdboxError) or not node.has("lost"):
        return loaded
    try:
        return Made(loaded.fd, (*node.texts("lost"), *loaded.lost))
    except FdtError as error:
        loaded.fd.close()
        return error


def attempt(make: Callable[[], Made | OwnedFd], kind: str) -> Loaded:
    """Return what `make` makes, or the error that stopped it; an OSError becomes a KernelError."""
    try:
        made = make()
    except FdboxError as error:
        return error
    except (OSError, OverflowError) as error:
        code = error.errno or 0 if isinstance(error, OSError) else 0
        return KernelError(f"cannot make the {kind} again: {error}", errno=code)
    return Made(made) if isinstance(made, OwnedFd) else made


def late_write(file: OpenFile) -> LateWrite:
    """Return the error for a file that was changed after it was saved."""
    return LateWrite(
        f"the {file.description.kind} {file.entry!r} was changed after it was saved",
        entry=file.entry,
        kind=file.description.kind,
    )


def numbered(component: Node, name: str) -> Iterator[Node]:
    """Yield the nodes name@0, name@1, ...; FdtError unless they stand in this order without a gap."""
    found = [node for node in component.children if node.name.partition("@")[0] == name]
    for index, node in enumerate(found):
        if node.name != f"{name}@{index}":
            raise FdtError(f"{node.name} stands where {name}@{index} should")
        yield node


def _without_losses(node: Node) -> Node:
    kept = {name: value for name, value in node.properties.items() if name != "lost"}
    return Node(node.name, kept, node.children)


@dataclass(frozen=True, slots=True)
class Uncarried:
    """A kind that nothing carries: a name and a reason. It outlives its process in the box all the same."""

    name: str
    about: str
    test: Callable[[Look], bool]
    obstacle: str
    remedy: str = "it outlives its process in the box; remove it before an update of the kernel"

    @property
    def keeps(self) -> str:
        """Nothing."""
        return ""

    @property
    def loses(self) -> str:
        """Why, and what to do instead."""
        return f"{self.obstacle}: {self.remedy}"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return self.test(seen)

    def describe(self, seen: Look) -> Description:
        """Return its name, and what /proc calls it."""
        return Description(self.name, None, seen.link)

    def carriage(self, seen: Look | None, carrier: Carrier[OwnedFd]) -> Carriage:
        """Return that nothing carries it."""
        return Carriage(None, self.obstacle, self.remedy)


def anonymous(name: str) -> Callable[[Look], bool]:
    """Return a test for the kernel's anonymous files of one type, as /proc names them."""
    links = (f"anon_inode:[{name}]", f"anon_inode:{name}")
    return lambda seen: seen.link in links
