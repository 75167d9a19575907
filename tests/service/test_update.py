from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fdbox.errors import FdboxError, KernelError, NoUpdate, UpdateAborted, UpdateInProgress
from fdbox.service.update import Action, Phase, Update

if TYPE_CHECKING:
    from collections.abc import Callable

UNDOING_STEPS = (Action.THAW, Action.UNLOAD, Action.RECALL, Action.FINISH)


def begun(*subscribers: str, **options: bool) -> Update:
    update = Update()
    for name in subscribers:
        update.subscribed(name, f"name of {name}")
    assert update.begin(**options) == [Action.LOAD]
    return update


def test_without_subscribers_it_goes_straight_through() -> None:
    update = begun()
    assert update.loaded() == [Action.ANNOUNCE, Action.SEAL]
    assert update.sealed() == [Action.COMMIT]
    assert update.phase is Phase.COMMITTING


def test_it_waits_until_the_last_one_is_ready() -> None:
    update = begun("a", "b")
    assert update.loaded() == [Action.ANNOUNCE]
    assert update.waiting == ["name of a", "name of b"]
    assert update.ready("a") == []
    assert update.ready("a") == [], "saying it twice is harmless"
    assert update.waiting == ["name of b"]
    assert update.ready("b") == [Action.SEAL]


def test_who_goes_away_is_not_waited_for() -> None:
    update = begun("a", "b")
    update.loaded()
    update.ready("a")
    assert update.gone("a") == []
    assert update.gone("b") == [Action.SEAL]
    assert update.gone("never was") == []


def test_who_comes_meanwhile_counts() -> None:
    update = begun("a")
    assert not update.subscribed("early", "early")
    update.gone("early")
    update.loaded()
    assert update.subscribed("late", "late")
    assert update.ready("a") == []
    assert update.ready("late") == [Action.SEAL]


def test_the_deadline_aborts_and_names_who_was_missing() -> None:
    update = begun("a")
    update.loaded()
    assert update.deadline() == [Action.UNLOAD, Action.RECALL, Action.FINISH]
    assert isinstance(update.failure, UpdateAborted)
    assert "name of a" in str(update.failure)


def test_the_deadline_proceeds_if_that_was_asked_for() -> None:
    update = begun("a", proceed_at_deadline=True)
    update.loaded()
    assert update.deadline() == [Action.SEAL]


def test_a_dry_run_loads_and_unloads() -> None:
    update = begun("a", dry_run=True)
    assert update.loaded() == [Action.UNLOAD, Action.FINISH]
    update.finished()
    assert update.phase is Phase.IDLE
    assert update.failure is None


@pytest.mark.parametrize(
    ("phase", "undone"),
    [
        (Phase.LOADING, [Action.UNLOAD, Action.FINISH]),
        (Phase.PREPARING, [Action.UNLOAD, Action.RECALL, Action.FINISH]),
        (Phase.SEALING, [Action.THAW, Action.UNLOAD, Action.RECALL, Action.FINISH]),
        (Phase.COMMITTING, [Action.THAW, Action.UNLOAD, Action.RECALL, Action.FINISH]),
    ],
)
def test_each_phase_is_undone_in_reverse(phase: Phase, undone: list[Action]) -> None:
    for call_off in (False, True):
        update = begun("a")
        steps: list[Callable[[], object]] = [
            update.loaded,
            functools.partial(update.ready, "a"),
            update.sealed,
        ]
        for step in steps:
            if update.phase is not phase:
                step()
        assert update.phase is phase
        if call_off and phase is Phase.COMMITTING:
            with pytest.raises(UpdateInProgress, match="too late"):
                update.abort()
            continue
        assert (update.abort() if call_off else update.failed(KernelError("no"))) == undone
        with pytest.raises(NoUpdate):
            update.abort()
        update.finished()
        assert update.begin() == [Action.LOAD], "the next one can begin"


def state(update: Update) -> tuple[object, ...]:
    told = update.proceed_at_deadline, update.dry_run, update.failure
    return update.phase, dict(update.subscribers), update.waiting, *told


class Machine(RuleBasedStateMachine):
    """Any event at any time: it is taken, or it raises and changes nothing; what is undone was done."""

    def __init__(self) -> None:
        super().__init__()
        self.update = Update()
        self.done: list[Action] = []

    @rule(
        event=st.sampled_from(["begin", "loaded", "deadline", "sealed", "abort", "finished"]),
        dry=st.booleans(),
    )
    def happen(self, event: str, dry: bool) -> None:
        before = state(self.update)
        try:
            actions = (
                self.update.begin(dry_run=dry)
                if event == "begin"
                else getattr(self.update, event)()
            )
        except FdboxError:
            assert state(self.update) == before
            return
        self.take(actions or [])

    @rule(key=st.sampled_from("abc"), event=st.sampled_from(["subscribed", "ready", "gone"]))
    def subscriber(self, key: str, event: str) -> None:
        before = state(self.update)
        try:
            if event == "subscribed":
                told = self.update.subscribed(key, key)
                assert told == (self.update.phase is Phase.PREPARING)
                return
            self.take(getattr(self.update, event)(key))
        except NoUpdate:
            assert state(self.update) == before

    @rule()
    def fail(self) -> None:
        try:
            self.take(self.update.failed(KernelError("no")))
        except NoUpdate:
            assert self.update.phase in (Phase.IDLE, Phase.UNDOING)

    def take(self, actions: list[Action]) -> None:
        if Action.LOAD in actions:
            self.done = []
        for action in actions:
            assert action is not Action.THAW or Action.SEAL in self.done
            assert action is not Action.RECALL or Action.ANNOUNCE in self.done
            assert action is not Action.COMMIT or self.done[-1] is Action.SEAL
            assert action not in self.done, "nothing is done twice in one update"
            self.done.append(action)
        if actions and actions[-1] is Action.FINISH:
            assert self.update.phase is Phase.UNDOING

    @invariant()
    def waits_only_while_preparing(self) -> None:
        assert not self.update.waiting or self.update.phase is Phase.PREPARING


TestUpdate = Machine.TestCase
