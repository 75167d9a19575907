from __future__ import annotations

import mmap
import os
import threading
from typing import TYPE_CHECKING

import pytest

from fdbox.linux import layout, memfd
from fdbox.linux.layout import Layout
from fdbox.linux.mapping import HUGE, Mapping

if TYPE_CHECKING:
    from fdbox.linux.fd import OwnedFd

PAGE = 4096
MIB = 1 << 20

pytestmark = pytest.mark.root  # frame numbers are for root


def scattered(size: int) -> OwnedFd:
    """Return memory whose pages were taken in turns with those of another."""
    fd = memfd.create("scattered", size)
    with memfd.create("others", size) as others:
        for page in range(size // PAGE):
            os.pwrite(fd.fileno(), page.to_bytes(4, "little") * (PAGE // 4), page * PAGE)
            os.pwrite(others.fileno(), b"y" * PAGE, page * PAGE)
    return fd


def collapsed(fd: int) -> list[int]:
    with memfd.reopen(fd, os.O_RDONLY) as own:
        return [layout.collapse(own.fileno(), start) for start in layout.may_collapse(own.fileno())]


def test_memory_is_put_together_in_place() -> None:
    with scattered(8 * MIB) as fd:
        before = layout.survey(fd.fileno())
        assert (before.pages, before.huge) == (2048, 0)
        assert before.runs is not None
        assert before.runs > 500
        content = os.pread(fd.fileno(), 8 * MIB, 0)
        assert collapsed(fd.fileno()) == [0] * 4
        after = layout.survey(fd.fileno())
        assert (after.pages, after.huge) == (2048, 4)
        assert after.runs is not None
        assert after.runs <= 4
        assert after.folios == 4
        assert os.pread(fd.fileno(), 8 * MIB, 0) == content
        assert collapsed(fd.fileno()) == [], "nothing is left to do"


def test_who_has_it_mapped_sees_no_change_and_goes_on_writing() -> None:
    stop = threading.Event()
    with scattered(4 * MIB) as fd, mmap.mmap(fd.fileno(), 4 * MIB) as mapped:
        rounds = 0

        def write() -> None:
            nonlocal rounds
            while not stop.is_set():
                rounds += 1
                for at in range(0, 4 * MIB, 64 * PAGE):
                    mapped[at + 8 : at + 16] = rounds.to_bytes(8, "little")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(10):
                collapsed(fd.fileno())
        finally:
            stop.set()
            writer.join()
        assert rounds
        for at in range(0, 4 * MIB, 64 * PAGE):
            assert mapped[at + 8 : at + 16] == rounds.to_bytes(8, "little")
            assert mapped[at : at + 4] == (at // PAGE).to_bytes(4, "little")


def test_holes_stay_holes() -> None:
    with memfd.create("sparse", 1 << 40) as fd:
        os.pwrite(fd.fileno(), b"x", 5 << 30)
        os.pwrite(fd.fileno(), b"x" * MIB, 9 << 30)
        os.pwrite(fd.fileno(), b"x", (1 << 40) - 1)
        blocks = os.fstat(fd.fileno()).st_blocks
        assert layout.survey(fd.fileno()).pages == 258
        assert os.fstat(fd.fileno()).st_blocks == blocks


def test_what_is_half_a_hole_is_left() -> None:
    with memfd.create("half", 4 * MIB) as fd:
        os.pwrite(fd.fileno(), b"x" * MIB, 0)
        os.pwrite(fd.fileno(), b"x" * (2 * MIB - 16 * PAGE), 2 * MIB)
        with memfd.reopen(fd.fileno(), os.O_RDONLY) as own:
            assert list(layout.may_collapse(own.fileno())) == [2 * MIB]


@pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 1, 2 * MIB - 1, 2 * MIB + 1, 70 * MIB + 5])
def test_any_size(size: int) -> None:
    with memfd.create("m", size) as fd:
        for at in range(0, size, MIB):
            os.pwrite(fd.fileno(), b"x" * min(MIB, size - at), at)
        found = layout.survey(fd.fileno())
        assert found.pages == -(-size // PAGE)
        with memfd.reopen(fd.fileno(), os.O_RDONLY) as own:
            assert len(list(layout.may_collapse(own.fileno()))) <= size // HUGE


def test_what_becomes_shorter_meanwhile_is_no_accident() -> None:
    with memfd.create("m", 4 * MIB) as fd, Mapping(fd.fileno(), 0, 4 * MIB) as mapped:
        os.ftruncate(fd.fileno(), PAGE)
        assert mapped.populate(2 * MIB, MIB) is False
        assert mapped.collapse(2 * MIB) != 0


def test_layouts_add_up() -> None:
    assert Layout(1, 0, 1).plus(Layout(512, 1, 2)) == Layout(513, 1, 3)


def test_the_holes_of_a_memory_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def lseek(fd: int, offset: int, whence: int) -> int:
        asked.append(offset)
        return real(fd, offset, whence)

    real = os.lseek
    with memfd.create("whole", 32 * MIB) as fd:
        for at in range(0, 32 * MIB, MIB):
            os.pwrite(fd.fileno(), b"x" * MIB, at)
        monkeypatch.setattr(os, "lseek", lseek)
        layout.survey(fd.fileno())
        assert len(asked) == 3, "where data begins, where it ends, and that there is no more"
        asked.clear()
        list(layout.may_collapse(fd.fileno()))
        assert len(asked) == 3
