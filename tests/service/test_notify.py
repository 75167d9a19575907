from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdbox.service.notify import PASSED_ON, TRANSITIONS, Phase, Program, Wish

WORDS = st.sampled_from(["READY", "RELOADING", "STOPPING", "WATCHDOG", "STATUS", "FDSTORE", "?"])
NUMBERS = ["MAINPID", "WATCHDOG_USEC"]
VALUES = st.one_of(st.sampled_from(["1", "0", "", "trigger"]), st.text(max_size=30))
MESSAGES = st.dictionaries(st.one_of(WORDS, st.sampled_from(NUMBERS)), VALUES, max_size=6)


def after(*words: str) -> Phase:
    told = Program()
    for word in words:
        assert told.hear({word: "1"}, 0.0) == Wish()
    return told.phase


@pytest.mark.parametrize(
    ("words", "phase"),
    [
        ("", Phase.STARTING),
        ("READY", Phase.READY),
        ("READY READY", Phase.READY),
        ("READY RELOADING", Phase.RELOADING),
        ("READY RELOADING RELOADING", Phase.RELOADING),
        ("READY RELOADING READY", Phase.READY),
        ("RELOADING", Phase.RELOADING),
        ("STOPPING", Phase.STOPPING),
        ("READY STOPPING", Phase.STOPPING),
        ("READY RELOADING STOPPING", Phase.STOPPING),
        ("STOPPING READY", Phase.STOPPING),
        ("STOPPING RELOADING", Phase.STOPPING),
    ],
)
def test_where_it_stands(words: str, phase: Phase) -> None:
    assert after(*words.split()) is phase


@pytest.mark.slow
@given(st.lists(MESSAGES))
def test_whatever_it_says_it_stands_somewhere(messages: list[dict[str, str]]) -> None:
    told = Program()
    for message in messages:
        before = told.phase
        wish = told.hear(message, 1.0)
        assert wish.abort == (message.get("WATCHDOG") == "trigger")
        assert wish.main_pid is None or 0 <= wish.main_pid < 10**20
        assert told.deadline is None or 1.0 <= told.deadline < math.inf
        assert told.phase is before or any(message.get(word) == "1" for word in TRANSITIONS)


def test_only_1_is_yes() -> None:
    told = Program()
    told.hear({"READY": "0", "STOPPING": "yes"}, 0.0)
    assert told.phase is Phase.STARTING


def test_the_last_status_stays() -> None:
    told = Program()
    told.hear({"STATUS": "loading", "READY": "1"}, 0.0)
    told.hear({"WATCHDOG": "1"}, 1.0)
    assert told.status == "loading"
    told.hear({"STATUS": ""}, 2.0)
    assert told.status == ""


def test_who_said_when_it_will_be_heard_of_has_to_keep_to_it() -> None:
    told = Program()
    said = [
        ({"WATCHDOG": "1"}, 1.0, None),
        ({"WATCHDOG_USEC": "2500000"}, 10.0, 12.5),
        ({"STATUS": "nothing of it"}, 11.0, 12.5),
        ({"WATCHDOG": "1"}, 11.0, 13.5),
        ({"WATCHDOG": "0"}, 12.0, 13.5),
    ]
    for message, now, deadline in said:
        told.hear(message, now)
        assert told.deadline == deadline


@pytest.mark.parametrize("never", ["0", str((1 << 64) - 1)])
def test_it_may_be_excused(never: str) -> None:
    told = Program()
    told.hear({"WATCHDOG_USEC": "1"}, 0.0)
    told.hear({"WATCHDOG_USEC": never}, 0.0)
    assert told.deadline is None


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "²", "٣", " 1", "9" * 21, "9" * 4000])
def test_what_is_no_number_is_not_there(text: str) -> None:
    told = Program()
    told.hear({"WATCHDOG_USEC": "7000000"}, 0.0)
    assert told.hear({"MAINPID": text, "WATCHDOG_USEC": text}, 1.0) == Wish()
    assert told.deadline == 7.0


def test_what_it_wants() -> None:
    told = Program()
    assert told.hear({"MAINPID": "123", "READY": "1"}, 0.0) == Wish(main_pid=123)
    assert told.hear({"WATCHDOG": "trigger"}, 0.0) == Wish(abort=True)


def test_our_manager_hears_nothing_that_is_for_us_alone() -> None:
    assert not {"MAINPID", "WATCHDOG", "WATCHDOG_USEC", "FDSTORE", "BARRIER"} & set(PASSED_ON)
