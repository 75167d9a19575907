"""The contract of a kind: recognise, describe, freeze, thaw, save, verify, load, and what it depends on.

A kind saves all descriptors of its own in a box at once, into one FDT (its *component*), so that it can change its
format without touching another's. What the component needs beside it (memory) goes to the carrier as a *parcel*: a
descriptor under a token. Two entries that share one open file description are one `OpenFile`: the caller has seen to
that, and dups it at arrival.

Most kinds are an `Ordinary`: each file is a node `file@N` that one function writes and another reads.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from fdbox.errors import (
    FdboxError,
    FdtError,
    KernelError,
    LateWrite,
)
from fdbox.fdt.tree import Node
from fdbox.kinds.freight import Loaded, Made
from fdbox.linux.fd import OwnedFd
from fdbox.model import Carriage, Description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Company, Look, OpenFile
    from fdbox.ports import Carrier


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
    def is_portable(self) -> bool:
        """Whether it makes sense on another machine."""

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
    is_portable: ClassVar[bool] = False
    #: formats before `compatible` that `load` takes, too
    older: ClassVar[tuple[str, ...]] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """See `CarriedKind`."""
        return (self.compatible, *self.older)

    def describe(self, seen: Look) -> Description:
        """Return its name, and what /proc calls it."""
        return Description(self.name, None, seen.label)

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
        return Description(self.name, None, seen.label)

    def carriage(self, seen: Look | None, carrier: Carrier[OwnedFd]) -> Carriage:
        """Return that nothing carries it."""
        return Carriage(None, self.obstacle, self.remedy)


def anonymous(name: str) -> Callable[[Look], bool]:
    """Return a test for the kernel's anonymous files of one type, as /proc names them."""
    links = (f"anon_inode:[{name}]", f"anon_inode:{name}")
    return lambda seen: seen.link in links
