from __future__ import annotations

import copy
import os
import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdbox.errors import JournalUnreadable
from fdbox.linux import memfd
from fdbox.linux.fd import dup
from fdbox.model import BoxKey
from fdbox.service.journal import (
    Arrived,
    Box,
    Change,
    Contents,
    Journal,
    Lost,
    NextKernel,
    Noted,
    Record,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CHANGES: list[Record] = [
    Change(0, "a"),
    Change(1, "a", put={"x": Noted("e-1", "läbel"), "y": Noted("e-2", "")}),
    Change(0, "a", put={"x": Noted("e-3", "")}),
    Change(1, "a", removed=["x"], put={"y": Noted("e-4", "again")}),
    Change(0, "a", deleted=True),
    Change(0, "b", removed=["what is not there"], sealed=True),
    NextKernel(loaded=True),
    Change(5, "came", put={"z": Noted("e-5", "")}, session="fdbox-1"),
    Lost(5, "came", "gone", "why"),
    Arrived({"fdbox": 0}),
    Change(1, "a", sealed=True),
    Change(1, "a", sealed=False),
]
AFTER = Contents(
    boxes={
        BoxKey(1, "a"): Box({"y": Noted("e-4", "again")}),
        BoxKey(0, "b"): Box(sealed=True),
        BoxKey(5, "came"): Box({"z": Noted("e-5", "")}),
    },
    arrived={"fdbox-1": 1, "fdbox": 0},
    lost=[Lost(5, "came", "gone", "why")],
    next_kernel=True,
)


@pytest.fixture
def journal() -> Iterator[Journal]:
    made = Journal.new(Contents(), "here")
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
    again.write(Change(7, "more"))
    assert BoxKey(7, "more") in read_once(journal).boxes
    again.close()
    fresh = Journal.new(AFTER, "here")
    assert fresh.contents == AFTER
    assert fresh.grown == 0
    fresh.close()


def read_once(journal: Journal) -> Contents:
    again = read_again(journal)
    again.close()
    return again.contents


@given(st.data())
def test_a_torn_record_never_happened(data: st.DataObject) -> None:
    journal = Journal.new(Contents(), "here")
    try:
        states = [Contents(), Contents()]
        ends = [0, journal._end]
        for change in CHANGES:
            journal.write(change)
            states.append(copy.deepcopy(journal.contents))
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


@pytest.mark.parametrize(
    "first",
    [
        b'{"type":"format","version":2,"incarnation":"x"}',
        b'{"type":"box","owner":0,"box":"a"}',
        b"[]",
    ],
)
def test_what_a_newer_fdbox_wrote_is_refused_and_left(first: bytes) -> None:
    with memfd.create("journal") as fd:
        os.write(fd.fileno(), struct.pack("<II", len(first), zlib.crc32(first)) + first)
        with pytest.raises(JournalUnreadable, match=r"newer|version|sense"):
            Journal(dup(fd.fileno()))
        assert os.fstat(fd.fileno()).st_size == 8 + len(first)


def test_fields_that_a_newer_one_added_are_passed_over() -> None:
    journal = Journal.new(Contents(), "here")
    raw = b'{"type":"box","owner":0,"box":"a","later":1}'
    os.pwrite(journal.fileno(), struct.pack("<II", len(raw), zlib.crc32(raw)) + raw, journal._end)
    assert read_once(journal).boxes == {BoxKey(0, "a"): Box()}
    journal.close()
