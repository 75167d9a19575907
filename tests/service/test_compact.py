"""Compacting and predicting through the whole daemon."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.linux import memfd
from tests.linux.test_layout import scattered

if TYPE_CHECKING:
    from tests.service.daemon import Daemon

pytestmark = pytest.mark.root
MIB = 1 << 20


def test_compacting_changes_nothing_for_the_client(client: fdbox.Client) -> None:
    with scattered(8 * MIB) as fd, mmap.mmap(fd.fileno(), 8 * MIB) as mapped:
        before = bytes(mapped)
        client.box("cache").put("m", fd)
        predicted = client.predict().total
        (done,) = client.box("cache").compact()
        assert done.entry == "m"
        assert done.before.huge_pages == 0
        assert done.after.huge_pages == 4
        assert (done.before.runs or 0) > 500
        assert (done.after.runs or 9) <= 4
        assert bytes(mapped) == before
        mapped[:4] = b"more"
        with client.box("cache").get("m") as again:
            assert os.pread(again.fileno(), 4, 0) == b"more"
        now = client.predict().total
        assert now.boot_seconds < predicted.boot_seconds / 1000
        assert now.retrieve_seconds < predicted.retrieve_seconds / 100


def test_a_sealed_box_is_left_alone(client: fdbox.Client, memory: fdbox.OwnedFd) -> None:
    client.box("cache").put("m", memory)
    client.box("cache").seal()
    with pytest.raises(fdbox.BoxSealed, match="cache"):
        client.box("cache").compact()


def test_what_is_small_or_no_memory_is_said(client: fdbox.Client, memory: fdbox.OwnedFd) -> None:
    os.pwrite(memory.fileno(), b"x", 0)
    client.box("cache").put("small", memory)
    with fdbox.OwnedFd(os.eventfd(0)) as event:
        client.box("cache").put("event", event)
    (done,) = client.box("cache").compact()
    assert (done.entry, done.left) == ("small", "1 small page is left")


def test_memory_that_two_boxes_have_counts_once(client: fdbox.Client) -> None:
    with memfd.create("m", MIB) as fd:
        os.pwrite(fd.fileno(), b"x" * MIB, 0)
        for box in ("one", "two"):
            client.box(box).put("m", fd)
            client.box(box).put("again", fd)
    found = client.predict()
    assert [one.layout.pages for one in found.boxes] == [256, 0]
    assert found.total.layout.pages == 256


def test_no_memory_is_taken_where_there_is_none(daemon: Daemon, client: fdbox.Client) -> None:
    daemon.kernel.free = 1 << 20
    with scattered(4 * MIB) as fd:
        client.box("cache").put("m", fd)
        (done,) = client.box("cache").compact()
        assert "free memory" in done.left
        assert done.after.huge_pages == 0
