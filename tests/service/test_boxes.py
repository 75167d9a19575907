from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fdbox.errors import (
    BoxExists,
    BoxNotFound,
    BoxNotSealed,
    BoxSealed,
    EntryExists,
    EntryNotFound,
    FdboxError,
    InvalidName,
    QuotaExceeded,
    UsageError,
)
from fdbox.model import BoxKey, BoxState
from fdbox.service.boxes import Boxes, Quota

QUOTA = Quota(boxes=2, entries=5, descriptors=5, everybody=8)
KEYS = st.builds(BoxKey, st.integers(0, 2), st.sampled_from(["a", "b", "c", "", "x/y"]))
NAMES = st.lists(st.sampled_from(["1", "2", "3", "4", "", "a\0", "é" * 128]), max_size=3)


class Machine(RuleBasedStateMachine):
    """Boxes against dictionaries; what raises must have changed nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: Boxes[int] = Boxes(QUOTA)
        self.model: dict[BoxKey, tuple[BoxState, dict[str, int]]] = {}
        self.next = 0

    def total(self, owner: int | None = None) -> int:
        return sum(len(v) for k, (_, v) in self.model.items() if owner in (None, k.owner))

    @rule(key=KEYS, exclusive=st.booleans())
    def create(self, key: BoxKey, exclusive: bool) -> None:
        owned = sum(other.owner == key.owner for other in self.model)
        try:
            _, created = self.boxes.create(key, exclusive=exclusive)
        except BoxExists:
            assert exclusive
            assert key in self.model
        except InvalidName:
            assert key.name in ("", "x/y")
        except QuotaExceeded:
            assert owned >= QUOTA.boxes
        else:
            assert created == (key not in self.model)
            self.model.setdefault(key, (BoxState.OPEN, {}))

    @rule(key=KEYS)
    def delete(self, key: BoxKey) -> None:
        try:
            released = self.boxes.delete(key)
        except BoxNotFound:
            assert key not in self.model
        except BoxSealed:
            assert self.model[key][0] is not BoxState.OPEN
        else:
            assert released == list(self.model.pop(key)[1].values())

    @rule(key=KEYS, names=NAMES, replace=st.booleans())
    def put(self, key: BoxKey, names: list[str], replace: bool) -> None:  # noqa: C901 - each error, once
        new = []
        for name in names:
            self.next += 1
            new.append((name, self.next))
        try:
            released = self.boxes.put(key, new, replace=replace)
        except BoxNotFound:
            assert key not in self.model
        except BoxSealed:
            assert self.model[key][0] is not BoxState.OPEN
        except InvalidName:
            assert set(names) & {"", "a\0", "é" * 128}
        except UsageError:
            assert len(set(names)) < len(names)
        except EntryExists:
            assert not replace
            assert set(names) & set(self.model[key][1])
        except QuotaExceeded:
            fresh = len(set(names) - set(self.model[key][1]))
            assert (
                self.total(key.owner) + fresh > QUOTA.entries
                or self.total() + fresh > QUOTA.everybody
            )
        else:
            held = self.model[key][1]
            assert released == [held[name] for name in names if name in held]
            held.update(new)

    @rule(key=KEYS, names=NAMES)
    def remove(self, key: BoxKey, names: list[str]) -> None:
        try:
            released = self.boxes.remove(key, names)
        except BoxNotFound:
            assert key not in self.model
        except BoxSealed:
            assert self.model[key][0] is not BoxState.OPEN
        except EntryNotFound:
            assert set(names) - set(self.model[key][1])
        else:
            assert released == [self.model[key][1].pop(name) for name in dict.fromkeys(names)]

    @rule(key=KEYS, names=NAMES)
    def get(self, key: BoxKey, names: list[str]) -> None:
        try:
            found = self.boxes.get(key, names)
        except (BoxNotFound, EntryNotFound):
            assert key not in self.model or set(names) - set(self.model[key][1])
        else:
            assert found == [self.model[key][1][name] for name in names]

    @rule(key=KEYS, event=st.sampled_from(["begin_seal", "end_seal", "undo_seal", "unseal"]))
    def move(self, key: BoxKey, event: str) -> None:
        legal = {
            ("begin_seal", BoxState.OPEN): BoxState.SEALING,
            ("end_seal", BoxState.SEALING): BoxState.SEALED,
            ("undo_seal", BoxState.SEALING): BoxState.OPEN,
            ("unseal", BoxState.SEALED): BoxState.OPEN,
        }
        try:
            getattr(self.boxes, event)(key)
        except BoxNotFound:
            assert key not in self.model
        except (BoxSealed, BoxNotSealed):
            assert (event, self.model[key][0]) not in legal
        else:
            state, held = self.model[key]
            self.model[key] = (legal[event, state], held)

    @rule(key=KEYS)
    def adopt(self, key: BoxKey) -> None:
        if key not in self.model:
            self.next += 1
            self.boxes.adopt(key, {"arrived": self.next})
            self.model[key] = (BoxState.OPEN, {"arrived": self.next})

    @invariant()
    def same(self) -> None:
        assert {box.key: (box.state, box.entries) for box in self.boxes} == self.model
        assert [box.key for box in self.boxes.visible_to(0)] == list(self.model)
        assert all(box.key.owner == 1 for box in self.boxes.visible_to(1))

    def teardown(self) -> None:  # type: ignore[explicit-override]  # typing.override is Python 3.12
        assert len(self.boxes.clear()) == self.total()
        assert not list(self.boxes)


TestBoxes = Machine.TestCase


def test_the_error_of_a_sealed_box_says_that_it_is_sealed() -> None:
    boxes: Boxes[int] = Boxes(Quota())
    key = BoxKey(0, "a")
    boxes.create(key)
    boxes.begin_seal(key)
    boxes.end_seal(key)
    with pytest.raises(BoxSealed, match=r"is sealed.*unseal it"):
        boxes.put(key, [("x", 1)])


def test_names_of_255_bytes_are_the_longest() -> None:
    boxes: Boxes[int] = Boxes(Quota())
    assert boxes.create(BoxKey(0, "é" * 127 + "x"))[1]
    for bad in ("é" * 128, "", "a/b", "a\0b", "a\nb", "\udc80"):
        with pytest.raises(InvalidName):
            boxes.create(BoxKey(0, bad))


def test_a_limit_for_all_users_together_holds_too() -> None:
    boxes: Boxes[int] = Boxes(Quota(everybody=2))
    for owner in (1, 2):
        boxes.create(BoxKey(owner, "a"))
        boxes.put(BoxKey(owner, "a"), [("x", owner)])
    with pytest.raises(FdboxError, match="all users"):
        boxes.put(BoxKey(1, "a"), [("y", 3)])


def test_one_call_gives_each_entry_its_own_name() -> None:
    boxes: Boxes[int] = Boxes(Quota())
    boxes.create(BoxKey(1, "a"))
    with pytest.raises(UsageError, match="twice"):
        boxes.put(BoxKey(1, "a"), [("x", 1), ("x", 2)])


def test_room_is_kept_for_what_is_on_its_way() -> None:
    boxes: Boxes[int] = Boxes(QUOTA)
    mine, theirs = BoxKey(1, "a"), BoxKey(2, "a")
    for key in (mine, theirs):
        boxes.create(key)
    boxes.put(mine, [("1", 1)])
    with boxes.reserved(mine, ["1", "2", "3", "4"], replace=True):  # 1 is there already
        boxes.put(mine, [("5", 5)])
        with pytest.raises(QuotaExceeded, match="6 entries"):
            boxes.put(mine, [("6", 6)])
        with pytest.raises(QuotaExceeded, match="9 descriptors of all users"):
            boxes.put(theirs, [(f"{n}", n) for n in range(4)])
        boxes.put(theirs, [(f"{n}", n) for n in range(3)])
    boxes.put(mine, [("1", 10), ("2", 2), ("3", 3), ("4", 4)], replace=True)
    assert boxes.held_by(1) == 5


def test_what_raises_keeps_no_room() -> None:
    boxes: Boxes[int] = Boxes(QUOTA)
    key = BoxKey(1, "a")
    boxes.create(key)
    boxes.put(key, [("1", 1)])
    for error, names in (
        (EntryExists, ["1"]),
        (UsageError, ["2", "2"]),
        (InvalidName, [""]),
        (QuotaExceeded, ["2", "3", "4", "5", "6"]),
    ):
        with pytest.raises(error), boxes.reserved(key, names):
            raise AssertionError("it was let in")
    with pytest.raises(KeyError), boxes.reserved(key, ["2", "3", "4", "5"]):
        raise KeyError
    boxes.put(key, [(f"{n}", n) for n in range(2, 6)])
    assert key in boxes
    assert BoxKey(2, "a") not in boxes
