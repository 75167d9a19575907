"""A box as a program's store: first by itself with a daemon in this process, then under `fdbox run --box` with a real one."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.linux import kcmp, memfd
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.service.boxshelf import BoxShelf, stored_name
from tests.processes import Serving
from tests.service.running import Running, program, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.client.calls import Answer, R, Request


LIMIT = 6


@pytest.fixture
def box(client: fdbox.Client) -> fdbox.Box:
    return client.box("web")


@pytest.fixture
def shelf(box: fdbox.Box) -> Iterator[BoxShelf]:
    made = BoxShelf(box, LIMIT)
    assert made.contents() == []
    yield made
    made.close()


def new(count: int = 1) -> list[OwnedFd]:
    return [memfd.create("m") for _ in range(count)]


def entries(box: fdbox.Box) -> list[str]:
    return [entry.name for entry in box.list()]


def names(shelf: BoxShelf) -> list[str]:
    return [name for name, _ in shelf.contents()]


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("a", "a"),
        ("a:2", "a"),
        ("a:b", "a:b"),
        ("a:b:2", "a:b"),
        (":2", ":2"),
        ("a\N{FRACTION SLASH}b:3", "a/b"),
    ],
)
def test_names(entry: str, name: str) -> None:
    assert stored_name(entry) == name


def test_what_is_stored_is_in_the_box(shelf: BoxShelf, box: fdbox.Box) -> None:
    shelf.add("conn", new(2), poll=True)
    shelf.add("a/b", new(), poll=False)
    assert entries(box) == ["conn", "conn:2", "a\N{FRACTION SLASH}b"]
    assert names(shelf) == ["conn", "conn", "a/b"]
    shelf.remove("conn")
    shelf.remove("unknown")
    assert entries(box) == ["a\N{FRACTION SLASH}b"]
    shelf.add("a/b", new(), poll=False)
    shelf.remove("a/b")
    assert names(shelf) == entries(box) == []


def test_an_open_file_is_in_it_once_and_no_more_than_the_limit(
    shelf: BoxShelf, box: fdbox.Box
) -> None:
    given = new(LIMIT + 2)
    shelf.add("a", [given[0].dup(), *given], poll=True)
    assert len(entries(box)) == LIMIT
    assert names(shelf) == ["a"] * LIMIT


def test_what_hangs_up_leaves_the_box(shelf: BoxShelf, box: fdbox.Box) -> None:
    for poll in (True, False):
        ours, theirs = socket.socketpair()
        with theirs:
            shelf.add("sock", [OwnedFd(ours.detach())], poll=poll)
    assert [name for name, _ in shelf.drop_hung_up()] == ["sock"]
    assert entries(box) == ["sock:2"]
    assert shelf.fileno() >= 0


def test_what_others_put_is_left_alone(shelf: BoxShelf, box: fdbox.Box) -> None:
    """Though the program takes the same name: theirs is still there, and it finds both."""
    with memfd.create("theirs") as theirs, memfd.create("another") as another:
        box.put_many({"conn": theirs, "conn:2": another})
        shelf.add("conn", new(), poll=True)
        assert entries(box) == ["conn", "conn:2", "conn:3"]
        with box.get("conn") as there:
            assert kcmp.same_file(there.fileno(), theirs.fileno())
    shelf.remove("conn")
    assert entries(box) == ["conn", "conn:2"]


def test_a_name_that_cannot_be_told_is_left_out(
    shelf: BoxShelf, box: fdbox.Box, caplog: pytest.LogCaptureFixture
) -> None:
    with memfd.create("m") as fd, memfd.create("m") as other:
        box.put("a:b", fd)
        box.put("a", other)
    assert names(shelf) == ["a"]
    assert "LISTEN_FDNAMES" in caplog.text


def test_a_sealed_box_takes_it_later(
    shelf: BoxShelf, box: fdbox.Box, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.add("old", new(), poll=True)
    box.seal()
    shelf.add("new", new(2), poll=True)
    shelf.add("passing", new(), poll=True)
    shelf.remove("old")
    shelf.remove("passing")
    assert shelf.catch_up()
    assert names(shelf) == ["new", "new"], "as the program wants it"
    shelf.add("old", new(), poll=True)
    assert entries(box) == ["old"]
    box.unseal()
    assert not shelf.catch_up()
    assert entries(box) == ["new", "new:2", "old:2"]
    assert caplog.text.count("'new' is not in box") == 1, "it is said once"
    assert caplog.text.count("is still in box") == 1


def test_what_is_gone_from_the_box_is_not_missed(shelf: BoxShelf, box: fdbox.Box) -> None:
    shelf.add("a", new(), poll=True)
    box.remove("a")
    shelf.remove("a")
    assert names(shelf) == []


class Flaky:
    """A client whose calls the test may lose: before they are done, or their answer."""

    def __init__(self, client: fdbox.Client) -> None:
        self.client = client
        self.lost = 0
        self.after = False

    def call(self, request: Request[R]) -> Answer[R]:
        if self.lost and self.after:
            close_all(self.client.call(request).descriptors)
        if self.lost:
            self.lost -= 1
            raise fdbox.ConnectionLost("lost on purpose")
        return self.client.call(request)


@pytest.fixture
def flaky(client: fdbox.Client, box: fdbox.Box) -> Flaky:
    return Flaky(client)


@pytest.mark.parametrize("lost", [1, 3, 4])
@pytest.mark.parametrize("after", [False, True])
def test_an_answer_that_is_lost(flaky: Flaky, box: fdbox.Box, after: bool, lost: int) -> None:
    shelf = BoxShelf(fdbox.Box(flaky, "web", None), LIMIT)
    shelf.contents()
    flaky.lost, flaky.after = lost, after
    shelf.add("a", new(), poll=True)
    assert any(not shelf.catch_up() for _ in range(3))
    assert entries(box) == ["a"]
    flaky.lost = 1
    shelf.remove("a")
    assert not shelf.catch_up()
    assert entries(box) == []
    shelf.close()


def test_without_the_daemon_it_is_what_was_there_last(flaky: Flaky, box: fdbox.Box) -> None:
    shelf = BoxShelf(fdbox.Box(flaky, "web", None), LIMIT)
    flaky.lost = 1
    with pytest.raises(fdbox.ConnectionLost):
        shelf.contents()
    assert names(shelf) == []
    shelf.add("a", new(), poll=True)
    flaky.lost = 1
    assert names(shelf) == ["a"]
    shelf.close()


def test_an_entry_that_goes_while_it_is_read(
    shelf: BoxShelf, box: fdbox.Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add("a", new(), poll=True)
    shelf.add("b", new(), poll=True)
    listed = [box.list(), box.list()[1:]]
    box.remove("a")
    monkeypatch.setattr(box, "list", lambda: listed.pop(0))
    assert names(shelf) == ["b"]


# --- `fdbox run --box` -----------------------------------------------------------------------------------------------


@pytest.fixture
def serving() -> Iterator[Serving]:
    made = Serving()
    yield made
    made.stop()


def run(serving: Serving, code: str, *options: str) -> Running:
    options = ("--box", "web", "--socket", str(serving.socket), *options)
    return Running(program(code), *options)


PATIENT = """
say("up", *[f"{name}={read(fd)}" for fd, name in held])
for line in sys.stdin:
    exec(line)
    barrier()
    say("done")
"""


def ask(running: Running, line: str) -> None:
    running.tell(line)
    assert running.line() == "done"


def put(serving: Serving, name: str, content: bytes) -> None:
    with fdbox.connect(serving.socket) as client, memfd.create(name) as fd:
        os.write(fd.fileno(), content)
        client.box("web").put(name, fd)


def inside(serving: Serving) -> list[str]:
    with fdbox.connect(serving.socket) as client:
        return entries(client.existing_box("web"))


@pytest.mark.slow
def test_it_outlives_the_program_the_supervisor_and_the_daemon(serving: Serving) -> None:
    put(serving, "given", b"1")
    with run(serving, PATIENT) as running:
        assert running.line() == "up given=1"
        ask(running, 'notify("FDSTORE=1\\nFDNAME=a/b", memory("2"), memory("3"))')
        assert inside(serving) == ["given", "a\N{FRACTION SLASH}b", "a\N{FRACTION SLASH}b:2"]
        put(serving, "later", b"4")
        ask(running, 'notify("FDSTOREREMOVE=1\\nFDNAME=given")')
        running.tell("sys.exit(3)")
        assert running.line() == "up a/b=2 a/b=3 later=4"
        serving.kill_service()
        ask(running, 'notify("FDSTORE=1\\nFDNAME=x", memory("5"))')
        left = running.child()
        running.process.kill()
        running.process.wait()
    os.kill(left, 9)
    with run(serving, PATIENT) as running:
        assert running.line() == "up a/b=2 a/b=3 later=4 x=5"
        assert running.terminate() == 143


@pytest.mark.slow
def test_nothing_is_lost_while_the_daemon_is_killed(serving: Serving) -> None:
    """Every barrier holds: what the program knows to be stored is in the box, though the service dies all the time."""
    code = """
while True:
    say(len(held))
    for at in range(len(held), len(held) + 40):
        notify(f"FDSTORE=1\\nFDNAME=n{at}", memory(str(at)))
        barrier()
    sys.exit(3)
"""
    count = 200
    with run(serving, code) as running:
        line = ""
        for at in range(5):
            line = running.line()
            assert line == str(40 * at)
            serving.kill_service()
        assert running.line() == str(count)
        running.process.kill()
    found = inside(serving)
    assert found[:count] == [f"n{at}" for at in range(count)]


@pytest.mark.slow
def test_a_daemon_that_comes_back_is_given_what_it_missed(serving: Serving) -> None:
    with run(serving, PATIENT) as running:
        assert running.line() == "up"
        with fdbox.connect(serving.socket) as client:
            client.existing_box("web").delete()
        ask(running, 'notify("FDSTORE=1\\nFDNAME=a", memory("1"))')
        with fdbox.connect(serving.socket) as client:
            client.box("web")
        until(lambda: inside(serving) == ["a"])
        assert "'a' is not in box 'web' yet" in running.log
        assert running.terminate() == 143


@pytest.mark.slow
def test_the_limit_counts_what_is_in_the_box(serving: Serving) -> None:
    put(serving, "given", b"1")
    with run(serving, PATIENT, "--max-fds", "2") as running:
        assert running.line() == "up given=1"
        ask(running, 'notify("FDSTORE=1", memory("2"), memory("3"))')
        assert inside(serving) == ["given", "stored"]
        assert running.terminate() == 143


@pytest.mark.slow
def test_a_name_that_cannot_be_told_is_refused_at_once(serving: Serving) -> None:
    put(serving, "a:b", b"")
    with run(serving, PATIENT) as running:
        assert running.end() == 2
        assert "LISTEN_FDNAMES" in running.log
