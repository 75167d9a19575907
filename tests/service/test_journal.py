from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdbox.linux.fd import dup
from fdbox.model import BoxKey
from fdbox.service.journal import Journal, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

CHANGES = [
    Record(0, "a"),
    Record(1, "a", put={"x": ("e-1", "läbel"), "y": ("e-2", "")}),
    Record(0, "a", put={"x": ("e-3", "")}),
    Record(1, "a", removed=["x"], put={"y": ("e-4", "again")}),
    Record(0, "a", deleted=True),
    Record(0, "b", removed=["what is not there"]),
]
AFTER = {BoxKey(1, "a"): {"y": ("e-4", "again")}, BoxKey(0, "b"): {}}


@pytest.fixture
def journal() -> Iterator[Journal]:
    made = Journal.new({})
    yield made
    made.close()


def read_again(journal: Journal) -> Journal:
    return Journal(dup(journal.fileno()))


def test_the_next_process_reads_what_this_one_wrote(journal: Journal) -> None:
    for change in CHANGES:
        journal.write(change)
    assert journal.contents == AFTER
    again = read_again(journal)
    assert again.contents == AFTER
    again.write(Record(7, "more"))
    assert BoxKey(7, "more") in read_once(journal)
    again.close()
    fresh = Journal.new(AFTER)
    assert fresh.contents == AFTER
    assert fresh.grown == 0
    fresh.close()


def read_once(journal: Journal) -> dict[BoxKey, dict[str, tuple[str, str]]]:
    again = read_again(journal)
    again.close()
    return again.contents


@given(st.data())
def test_a_torn_record_never_happened(data: st.DataObject) -> None:
    journal = Journal.new({})
    try:
        states: list[dict[BoxKey, dict[str, tuple[str, str]]]] = [{}]
        ends = [0]
        for change in CHANGES:
            journal.write(change)
            states.append({key: dict(box) for key, box in journal.contents.items()})
            ends.append(journal._end)
        cut = data.draw(st.integers(0, ends[-1] - 1))
        torn = bytearray(os.pread(journal.fileno(), ends[-1], 0))
        torn[cut:] = data.draw(
            st.sampled_from([bytes(len(torn) - cut), b"\xff" * (len(torn) - cut)])
        )
        os.pwrite(journal.fileno(), torn, 0)
        whole = sum(end <= cut for end in ends) - 1
        found = read_once(journal)
        assert found in states[whole : whole + 2], "the last byte may have been right by chance"
    finally:
        journal.close()
