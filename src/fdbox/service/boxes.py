"""Boxes, entries, owners and quotas: pure state, no sockets and no kernel.

A box is open, sealing or sealed. Only an open box takes changes; `sealing` lasts while a worker saves it, so that
nobody changes what is being saved. Descriptors belong to the box from the moment a change succeeds; a change that
raises has taken nothing and changed nothing. What is let go is returned, for closing may block and is the caller's.

    OPEN --begin_seal--> SEALING --end_seal--> SEALED --unseal--> OPEN
                            `------undo_seal------------------------^
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from fdbox.errors import (
    BoxExists,
    BoxNotFound,
    BoxNotSealed,
    BoxSealed,
    EntryExists,
    EntryNotFound,
    QuotaExceeded,
    UsageError,
)
from fdbox.model import BoxKey, BoxState, check_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

D = TypeVar("D")

#: state -> state, for each event. What is not here is refused.
TRANSITIONS: dict[str, dict[BoxState, BoxState]] = {
    "begin_seal": {BoxState.OPEN: BoxState.SEALING},
    "end_seal": {BoxState.SEALING: BoxState.SEALED},
    "undo_seal": {BoxState.SEALING: BoxState.OPEN},
    "unseal": {BoxState.SEALED: BoxState.OPEN},
}


@dataclass(frozen=True, slots=True)
class Quota:
    """What one user may hold; `everybody` is how many descriptors all users may hold together."""

    boxes: int = 64
    entries: int = 16384
    descriptors: int = 16384
    everybody: int = 1 << 20


@dataclass(slots=True)
class Box(Generic[D]):
    """A named set of entries with one owner, in the order they were put."""

    key: BoxKey
    state: BoxState = BoxState.OPEN
    entries: dict[str, D] = field(default_factory=dict)

    def entry(self, name: str) -> D:
        """Return the descriptor under `name`, or raise EntryNotFound."""
        try:
            return self.entries[name]
        except KeyError:
            raise EntryNotFound(
                f"box {self.key.name!r} has no entry {name!r}", box=self.key.name, entry=name
            ) from None


class Boxes(Generic[D]):
    """All boxes of all users. `D` is the type of a descriptor, which is never looked at here."""

    def __init__(self, quota: Quota) -> None:
        """Begin with no boxes; `quota` holds for every user, root too."""
        self._quota = quota
        self._boxes: dict[BoxKey, Box[D]] = {}
        #: by owner: what is on its way into a box
        self._reserved: Counter[int] = Counter()

    def __iter__(self) -> Iterator[Box[D]]:
        """Return the boxes in the order of their creation."""
        return iter(tuple(self._boxes.values()))

    def __contains__(self, key: object) -> bool:
        """Return whether there is a box of this owner and name."""
        return key in self._boxes

    def visible_to(self, uid: int) -> list[Box[D]]:
        """Return the boxes that a user may know of: their own; root sees all."""
        return [box for key, box in self._boxes.items() if uid in (0, key.owner)]

    def find(self, key: BoxKey) -> Box[D]:
        """Return the box, or raise BoxNotFound."""
        try:
            return self._boxes[key]
        except KeyError:
            raise BoxNotFound(f"there is no box {key.name!r}", box=key.name) from None

    def create(self, key: BoxKey, *, exclusive: bool = False) -> tuple[Box[D], bool]:
        """Return the box and whether it is new.

        Raises:
            BoxExists: it is there, and `exclusive` asked for a new one.
            InvalidName, QuotaExceeded: nothing was created.
        """
        if found := self._boxes.get(key):
            if exclusive:
                raise BoxExists(f"box {key.name!r} exists", box=key.name)
            return found, False
        check_name(key.name, "box")
        held = sum(other.owner == key.owner for other in self._boxes)
        self._check("boxes", held + 1, self._quota.boxes)
        box = self._boxes[key] = Box[D](key)
        return box, True

    def delete(self, key: BoxKey) -> list[D]:
        """Forget the box and return what was in it."""
        box = self._changeable(key)
        del self._boxes[key]
        return list(box.entries.values())

    def put(self, key: BoxKey, new: Sequence[tuple[str, D]], *, replace: bool = False) -> list[D]:
        """Put all of `new` into the box, or none; return the descriptors that were replaced.

        Raises:
            EntryExists: a name is taken and `replace` was not asked for.
            BoxNotFound, BoxSealed, InvalidName, QuotaExceeded, UsageError: as they say.
        """
        box, taken = self._check_put(key, [name for name, _ in new], replace=replace)
        released = [box.entries[name] for name in taken]
        box.entries.update(new)
        return released

    @contextlib.contextmanager
    def reserved(
        self, key: BoxKey, names: Sequence[str], *, replace: bool = False
    ) -> Iterator[None]:
        """Keep room for what is going to be put; errors as `put`, which may still raise them."""
        _, taken = self._check_put(key, names, replace=replace)
        count = len(names) - len(taken)
        self._reserved[key.owner] += count
        try:
            yield
        finally:
            self._reserved[key.owner] -= count

    def _check_put(
        self, key: BoxKey, new: Sequence[str], *, replace: bool
    ) -> tuple[Box[D], list[str]]:
        """Return the box, and which of the names are taken."""
        box = self._changeable(key)
        names = [check_name(name, "entry") for name in new]
        if len(set(names)) != len(names):
            raise UsageError("one call names an entry twice", remedy="give each entry its own name")
        taken = [name for name in names if name in box.entries]
        if taken and not replace:
            raise EntryExists(
                f"box {key.name!r} has an entry {taken[0]!r}", box=key.name, entry=taken[0]
            )
        more = len(new) - len(taken)
        held = self.held_by(key.owner) + self._reserved[key.owner] + more
        self._check("entries", held, self._quota.entries)
        self._check("descriptors", held, self._quota.descriptors)
        everybody = sum(len(one.entries) for one in self._boxes.values()) + more
        on_the_way = self._reserved.total()
        self._check("descriptors of all users", everybody + on_the_way, self._quota.everybody)
        return box, taken

    def get(self, key: BoxKey, names: Iterable[str]) -> list[D]:
        """Return the descriptors under `names`, in that order; a sealed box still gives."""
        box = self.find(key)
        return [box.entry(name) for name in names]

    def remove(self, key: BoxKey, names: Iterable[str]) -> list[D]:
        """Take the entries out, all or none, and return their descriptors."""
        box = self._changeable(key)
        unique = list(dict.fromkeys(names))
        found = [box.entry(name) for name in unique]
        for name in unique:
            del box.entries[name]
        return found

    def adopt(self, key: BoxKey, entries: Mapping[str, D]) -> None:
        """Take in a box that arrived from the last incarnation: no quota may turn it away."""
        self._boxes[key] = Box[D](key, BoxState.OPEN, dict(entries))

    def begin_seal(self, key: BoxKey) -> Box[D]:
        """Bar the box from changes while it is saved."""
        return self._move("begin_seal", key)

    def end_seal(self, key: BoxKey) -> Box[D]:
        """Say that the box is saved."""
        return self._move("end_seal", key)

    def undo_seal(self, key: BoxKey) -> Box[D]:
        """Open the box again because saving it failed."""
        return self._move("undo_seal", key)

    def unseal(self, key: BoxKey) -> Box[D]:
        """Open a sealed box again: it was thawed in place."""
        return self._move("unseal", key)

    def held_by(self, owner: int) -> int:
        """Return how many descriptors a user holds."""
        return sum(len(box.entries) for key, box in self._boxes.items() if key.owner == owner)

    def clear(self) -> list[D]:
        """Forget everything and return every descriptor, for the end of the daemon."""
        descriptors = [d for box in self._boxes.values() for d in box.entries.values()]
        self._boxes.clear()
        return descriptors

    def _changeable(self, key: BoxKey) -> Box[D]:
        box = self.find(key)
        if box.state is not BoxState.OPEN:
            raise BoxSealed(f"box {key.name!r} is {box.state.value}", box=key.name)
        return box

    def _move(self, event: str, key: BoxKey) -> Box[D]:
        box = self.find(key)
        after = TRANSITIONS[event].get(box.state)
        if after is None:
            refusal = BoxNotSealed if event in ("unseal", "undo_seal", "end_seal") else BoxSealed
            raise refusal(f"box {key.name!r} is {box.state.value}", box=key.name)
        box.state = after
        return box

    def _check(self, what: str, wanted: int, limit: int) -> None:
        if wanted > limit:
            raise QuotaExceeded(
                f"that would be {wanted} {what}, and the limit is {limit}", limit=limit
            )
