"""What a process makes of what its keeper gives it; the keeper is a socket of the test."""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import JournalUnreadable, QuotaExceeded
from fdbox.keeper.store import Store, obey
from fdbox.linux import kcmp, memfd, sdnotify
from fdbox.linux.fd import OwnedFd, close_all, dup
from fdbox.model import BoxKey
from fdbox.ports import go_on
from fdbox.service.journal import Change, Contents, Journal, Noted
from fdbox.service.keep import Keep

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

HERE, THERE = "this incarnation", "the last one"
BOX = BoxKey(0, "b")
Given = list[tuple[str, OwnedFd]]


class Keeper:
    """Does what it is told, and gives what it has to the next process."""

    def __init__(self) -> None:
        self.store = Store(100)
        self._notify = sdnotify.listen()
        self.environment = {"NOTIFY_SOCKET": sdnotify.address(self._notify), "FDSTORE": "100"}

    def listen(self) -> None:
        while True:
            try:
                obey(sdnotify.receive(self._notify), self.store)
            except BlockingIOError:
                return

    def names(self) -> list[str]:
        return sorted(name for name, _ in self.store.contents())

    def given(self) -> Given:
        """Return what the next process gets; systemd gives the newest first."""
        return [(name, dup(fd.fileno())) for name, fd in reversed(self.store.contents())]

    def live(self, work: Callable[[Keep], Coroutine[Any, Any, None]], incarnation: str) -> None:
        """Be the keeper of a process that begins with all there is, and does this."""

        async def run() -> None:
            asyncio.get_running_loop().add_reader(self._notify, self.listen)
            keep = Keep(self.environment, self.given(), incarnation, go_on)
            try:
                await work(keep)
            finally:
                close_all(fd for _, fd in await keep.close())
                asyncio.get_running_loop().remove_reader(self._notify)
                self.listen()

        asyncio.run(run())

    def close(self) -> None:
        self.store.close()
        self._notify.close()


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper()
    yield made
    made.close()


async def put(keep: Keep, *names: str) -> None:
    fds = [memfd.create(name) for name in names]
    keys = await keep.hold(fds)
    noted = {name: Noted(key) for name, key in zip(names, keys, strict=True)}
    keep.write(Change(BOX.owner, BOX.name, put=noted))
    close_all(fds)


async def begin_and_put(keep: Keep) -> None:
    await keep.begin(None)
    await put(keep, "x", "y")


def test_the_next_process_has_what_the_one_before_had(keeper: Keeper) -> None:
    async def look(keep: Keep) -> None:
        entries = keep.contents.boxes[BOX].entries
        assert list(entries) == ["x", "y"]
        got = [keep.take(noted.key) for noted in entries.values()]
        await keep.begin(None)
        close_all(got)

    keeper.live(begin_and_put, HERE)
    assert keeper.names() == ["e-1", "e-2", "journal-1"]
    keeper.live(look, HERE)
    assert keeper.names() == ["e-1", "e-2", "journal-2"]


def test_what_another_incarnation_left_is_let_go(keeper: Keeper) -> None:
    async def look(keep: Keep) -> None:
        assert keep.contents == Contents()
        assert keep.take_sessions() == {}
        assert keep.take_listener() is None
        await begin_and_put(keep)

    async def hold_a_session(keep: Keep) -> None:
        await begin_and_put(keep)
        with memfd.create("session") as session:
            await keep.hold_session("fdbox", session.fileno())

    keeper.live(hold_a_session, THERE)
    assert keeper.names() == ["e-1", "e-2", "journal-1", "session-fdbox"]
    before = keeper.given()
    keeper.live(look, HERE)
    assert keeper.names() == ["e-1", "e-2", "journal-2"]
    now = dict(keeper.store.contents())
    for name, old in before:
        assert name not in now or not kcmp.same_file(old.fileno(), now[name].fileno())
    close_all(fd for _, fd in before)


def test_what_no_journal_names_is_let_go(keeper: Keeper) -> None:
    keeper.store.add("e-9", [memfd.create("left")], poll=False)
    keeper.live(begin_and_put, HERE)
    assert keeper.names() == ["e-1", "e-2", "journal-1"]


def test_an_entry_that_the_keeper_lost_is_named_and_its_key_is_free(keeper: Keeper) -> None:
    async def look(keep: Keep) -> None:
        assert keep.missing == [(BOX, "x")]
        assert list(keep.contents.boxes[BOX].entries) == ["y"]
        kept = keep.take(keep.contents.boxes[BOX].entries["y"].key)
        await keep.begin(None)
        await put(keep, "new")
        assert keep.contents.boxes[BOX].entries["new"].key == "e-1"
        kept.close()

    keeper.live(begin_and_put, HERE)
    keeper.store.remove("e-1")
    keeper.live(look, HERE)
    assert keeper.names() == ["e-1", "e-2", "journal-2"]


def test_what_the_keeper_has_no_room_for_is_refused(keeper: Keeper) -> None:
    """It would say nothing: FDSTORE=1 has no answer."""

    async def fill(keep: Keep) -> None:
        await keep.begin(None)
        fds = [memfd.create("m") for _ in range(keep.room + 1)]
        with pytest.raises(QuotaExceeded, match="75"):
            await keep.hold(fds)
        keys = await keep.hold(fds[1:])
        assert len(set(keys)) == 75
        close_all(fds)

    keeper.live(fill, HERE)
    assert len(keeper.names()) == 76


def test_keys_are_used_again(keeper: Keeper) -> None:
    async def many(keep: Keep) -> None:
        await keep.begin(None)
        for _ in range(50):
            fds = [memfd.create(name) for name in ("a", "b", "c")]
            keys = await keep.hold(fds)
            assert sorted(keys) == ["e-1", "e-2", "e-3"]
            keep.let_go([fd.fileno() for fd in fds])
            close_all(fds)

    keeper.live(many, HERE)
    assert keeper.names() == ["journal-1"]


def test_an_open_file_has_one_key_as_long_as_anybody_has_it(keeper: Keeper) -> None:
    async def share(keep: Keep) -> None:
        await keep.begin(None)
        first = memfd.create("shared")
        second, third = first.dup(), first.dup()
        assert await keep.hold([first, second]) == ["e-1", "e-1"]
        assert await keep.hold([third]) == ["e-1"]
        keep.let_go([first.fileno()])
        first.close()
        with second.dup() as fourth:
            assert await keep.hold([fourth]) == ["e-1"], "found by those that are left"
            keep.let_go([fourth.fileno(), third.fileno()])
        keep.let_go([second.fileno()])
        close_all([second, third])

    keeper.live(share, HERE)
    assert keeper.names() == ["journal-1"]


def test_the_journal_is_written_anew_when_it_has_grown(keeper: Keeper) -> None:
    async def write(keep: Keep) -> None:
        await begin_and_put(keep)
        for number in range(100):
            keep.write(Change(1, "c", put={"n": Noted("e-1", str(number) * 100_000)}))
            await asyncio.sleep(0)

    keeper.live(write, HERE)
    assert keeper.names() != ["e-1", "e-2", "journal-1"]
    (journal,) = [fd for name, fd in keeper.store.contents() if name.startswith("journal")]
    again = Journal(dup(journal.fileno()))
    assert again.contents.boxes[BoxKey(1, "c")].entries == {"n": Noted("e-1", "99" * 100_000)}
    assert again.grown < 9 << 20
    assert list(again.contents.boxes[BOX].entries) == ["x", "y"]
    again.close()


def test_a_journal_that_cannot_be_read_stays_with_the_keeper(keeper: Keeper) -> None:
    first = b'{"type":"format","version":2,"incarnation":"x"}'
    journal = memfd.create("journal")
    os.write(journal.fileno(), struct.pack("<II", len(first), zlib.crc32(first)) + first)
    keeper.store.add("journal-1", [journal], poll=False)
    with pytest.raises(JournalUnreadable, match="newer"):
        keeper.live(begin_and_put, HERE)
    assert keeper.names() == ["journal-1"]
