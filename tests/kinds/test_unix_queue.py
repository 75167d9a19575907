"""What is queued in Unix sockets, and what happens to it while a box is sealed."""

from __future__ import annotations

import ctypes
import os
import socket
import traceback
from typing import TYPE_CHECKING

import pytest

from fdbox.errors import LateWrite
from fdbox.kinds.freight import Arrivals, Made
from fdbox.linux import sock
from fdbox.linux.fd import OwnedFd
from tests.kinds.test_unix_pair import BIG, DGRAM, SEQPACKET, STREAM, drain, pair, send
from tests.kinds.test_unix_socket import bound, listening, one

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kinds.conformance import World
    from tests.kinds.samples import Entries

LIBC = ctypes.CDLL(None)
CLONE_NEWUSER = 0x10000000  # Python 3.12 has it
IN_PACKETS = pytest.mark.parametrize("kind", [DGRAM, SEQPACKET])


def packets(world: World, entries: Entries) -> list[int]:
    """Return the lengths of what is saved of the second end."""
    sealed = world.seal(entries)
    found = sealed.parts[0].component.child("file@1").u32s("packets")
    sealed.thaw()
    return found


# --- what changes late -----------------------------------------------------------------------------------------------


@IN_PACKETS
@pytest.mark.parametrize("late", [b"", b"late"])
def test_a_late_message_is_noticed_even_an_empty_one(world: World, kind: int, late: bytes) -> None:
    entries = pair(kind, send(b"", b"a", b""))(world.folder)
    world.made.append(entries)
    sealed = world.seal(entries)
    with sock.borrow(entries["one"].fileno()) as one:
        one.send(late)
    with pytest.raises(LateWrite):
        sealed.verify()
    sealed.thaw()


@IN_PACKETS
def test_an_empty_message_that_is_taken_late_is_noticed(world: World, kind: int) -> None:
    entries = pair(kind, send(b"", b"a"))(world.folder)
    world.made.append(entries)
    sealed = world.seal(entries)
    with sock.borrow(entries["two"].fileno()) as two:
        assert two.recv(9) == b""
    with pytest.raises(LateWrite):
        sealed.verify()
    sealed.thaw()


def test_a_late_shutdown_is_noticed(world: World) -> None:
    entries = pair(STREAM)(world.folder)
    world.made.append(entries)
    sealed = world.seal(entries)
    with sock.borrow(entries["one"].fileno()) as one:
        one.shutdown(socket.SHUT_WR)
    with pytest.raises(LateWrite):
        sealed.verify()
    sealed.thaw()


@IN_PACKETS
def test_empty_messages_that_somebody_else_has_peeked_at_are_told(world: World, kind: int) -> None:
    entries = pair(kind, send(b"", b"a"))(world.folder)
    world.made.append(entries)
    with sock.borrow(entries["two"].fileno()) as two:
        assert two.recv(9, socket.MSG_PEEK) == b""
    sealed = world.seal(entries)
    assert sealed.lost == [("two", "1 empty messages in its queue that somebody has peeked at")]
    sealed.thaw()


# --- empty messages ----------------------------------------------------------------------------------------------------


@IN_PACKETS
def test_empty_messages_are_saved_each_time(world: World, kind: int) -> None:
    entries = pair(kind, send(b"", b"a", b"", b"", b"b"))(world.folder)
    world.made.append(entries)
    assert packets(world, entries) == [0, 1, 0, 0, 1]
    assert packets(world, entries) == [0, 1, 0, 0, 1]


@IN_PACKETS
def test_empty_messages_are_saved_where_others_come_and_go(world: World, kind: int) -> None:
    entries = pair(kind, send(b"", b"a", b"", b"bc"))(world.folder)
    world.made.append(entries)
    assert packets(world, entries) == [0, 1, 0, 2]
    with (
        sock.borrow(entries["one"].fileno()) as sender,
        sock.borrow(entries["two"].fileno()) as receiver,
    ):
        assert [receiver.recv(9), receiver.recv(9)] == [b"", b"a"]
        sender.send(b"")
        sender.send(b"def")
    assert packets(world, entries) == [0, 2, 0, 3]
    with sock.borrow(entries["two"].fileno()) as receiver:
        assert len(drain(receiver)) == 4
    with sock.borrow(entries["one"].fileno()) as sender:
        sender.send(b"x")
    assert packets(world, entries) == [1]


def test_looking_leaves_the_offset_of_peeking(world: World) -> None:
    entries = pair(STREAM, send(b"abc"))(world.folder)
    world.made.append(entries)
    with sock.borrow(entries["two"].fileno()) as two:
        two.setsockopt(socket.SOL_SOCKET, sock.SO_PEEK_OFF, 1)
        world.seal(entries).thaw()
        assert two.recv(9, socket.MSG_PEEK) == b"bc"


# --- without privilege -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        pair(STREAM, send(BIG)),
        pair(DGRAM, send(b"", b"a", BIG)),
        one(STREAM, bound, listening(5)),
        one(DGRAM, bound),
    ],
)
def test_it_is_carried_without_privilege(world: World, make: Callable[[Path], Entries]) -> None:
    """The child is in a user namespace of its own: nobody here."""
    entries = make(world.folder)
    world.made.append(entries)
    child = os.fork()
    if child == 0:
        try:
            assert os.geteuid() != 0 or LIBC.unshare(CLONE_NEWUSER) == 0
            cross(world, entries)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - this process must not go on as a test
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def cross(world: World, entries: Entries) -> None:
    """Save and make again; the file that a socket leaves is removed by that."""
    sealed = world.seal(entries)
    sealed.verify()
    (part,) = sealed.parts
    for loaded in part.kind.load(part.component, Arrivals(world.kernel, OwnedFd)):
        assert isinstance(loaded, Made), loaded
        assert loaded.lost == ()
        loaded.fd.close()
