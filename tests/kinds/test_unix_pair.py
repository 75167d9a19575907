from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry, FdtError
from fdbox.fdt.tree import Node
from fdbox.kinds import registry
from fdbox.kinds.freight import Arrivals, Made
from fdbox.kinds.look import look
from fdbox.linux import kcmp, sock
from fdbox.linux.fd import OwnedFd, close_all
from tests.fakes.carrier import FakeKernel
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.kinds.conformance import World

LIBC = ctypes.CDLL(None)
KIND = registry.CARRIED["unix-pair"]
STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
PAIR = {"one": "unix-pair", "two": "unix-pair"}
#: struct sock_filter { __u16 code; __u8 jt, jf; __u32 k; }: BPF_RET, all of it
ACCEPT_ALL = struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF)


def owned(*sockets: socket.socket) -> list[OwnedFd]:
    return [OwnedFd(one.detach()) for one in sockets]


def pair(kind: int, *changes: Callable[[socket.socket, socket.socket], Any]) -> Any:  # noqa: ANN401 - a function
    """Return what makes both ends and changes them."""

    def make(folder: Path) -> Entries:
        one, two = socket.socketpair(socket.AF_UNIX, kind)
        for change in changes:
            change(one, two)
        return dict(zip(("one", "two"), owned(one, two), strict=True))

    return make


def survivor(kind: int, *changes: Callable[[socket.socket, socket.socket], Any]) -> Any:  # noqa: ANN401 - a function
    """Return what makes two ends, changes them, and closes the second."""

    def make(folder: Path) -> Entries:
        entries: Entries = pair(kind, *changes)(folder)
        entries.pop("two").close()
        return entries

    return make


def receive(lent: socket.socket, size: int) -> tuple[bytes, list[OwnedFd]]:
    data, control, _, _ = lent.recvmsg(size, 8192, socket.MSG_DONTWAIT)
    fds = array.array("i")
    for _, kind, content in control:
        if kind == socket.SCM_RIGHTS:
            fds.frombytes(content)
    return data, [OwnedFd(fd) for fd in fds]


def drain(lent: socket.socket) -> list[str]:
    """Return what can be read: messages, or "end", or an error."""
    found: list[str] = []
    while len(found) < 1000:
        try:
            data, fds = receive(lent, 1 << 20)
        except BlockingIOError:
            break
        except OSError as error:
            found.append(str(error.strerror))
            continue
        close_all(fds)
        if not data and lent.type != DGRAM and ended(lent):
            found.append("end")
            break
        found.append(f"{len(data)} {data[:1]!r} {data[-1:]!r} {len(fds)}")
    return found


def ended(lent: socket.socket) -> bool:
    poller = select.poll()
    poller.register(lent, select.POLLRDHUP)
    return bool(poller.poll(0))


def events(lent: socket.socket) -> int:
    poller = select.poll()
    poller.register(lent, 0xFFFF & ~select.POLLNVAL)
    return sum(found for _, found in poller.poll(0))


def options(lent: socket.socket) -> list[Any]:
    """Return every option of SOL_SOCKET that is a number and not the socket's own."""
    own = {
        17,
        55,
        56,
        57,
        59,
        65,
        71,
        77,
    }  # SO_PEERCRED, _MEMINFO, _NAPI_ID, _COOKIE, _PEERGROUPS...
    found: list[Any] = []
    for number in range(1, 90):
        if number not in own | {26, 28, 31}:
            try:
                found.append([number, lent.getsockopt(socket.SOL_SOCKET, number, 16).hex()])
            except OSError as error:
                found.append([number, error.errno])
    return [*found, sock.filter_of(lent).hex()]


def try_to_send(lent: socket.socket, data: bytes) -> str:
    try:
        return str(lent.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL))
    except OSError as error:
        return str(error.strerror)


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    seen: list[Any] = []
    for fd in fds.values():
        with sock.borrow(fd) as lent:
            status = os.fstat(fd)
            owner = [status.st_mode, status.st_uid, status.st_gid]
            seen.append([lent.type, fcntl.fcntl(fd, fcntl.F_GETFL), owner, options(lent)])
            seen.append(events(lent))
    for fd in fds.values():
        with sock.borrow(fd) as lent:
            seen += [drain(lent), try_to_send(lent, b"again")]
    for fd in fds.values():
        with sock.borrow(fd) as lent:
            seen.append(drain(lent))
    return seen


def observe_bytes(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    with sock.borrow(fds["two"]) as two:
        return [events(two), drain(two)]


def disturb(fds: Mapping[str, int]) -> None:
    with sock.borrow(fds["one"]) as one:
        one.send(b"late", socket.MSG_DONTWAIT)


def send(*messages: bytes) -> Callable[[socket.socket, socket.socket], Any]:
    return lambda one, two: [one.send(message) for message in messages]


def send_back(*messages: bytes) -> Callable[[socket.socket, socket.socket], Any]:
    return lambda one, two: [two.send(message) for message in messages]


def shut(how: int) -> Callable[[socket.socket, socket.socket], Any]:
    return lambda one, two: one.shutdown(how)


def unusual(one: socket.socket, two: socket.socket) -> None:
    for number, value in (
        (socket.SO_SNDBUF, 20000),
        (socket.SO_RCVBUF, 30000),
        (socket.SO_KEEPALIVE, 1),
        (socket.SO_PRIORITY, 5),
        (socket.SO_RCVLOWAT, 3),
        (sock.SO_PEEK_OFF, 2),
        (16, 1),  # SO_PASSCRED
    ):
        one.setsockopt(socket.SOL_SOCKET, number, value)
    with contextlib.suppress(OSError):  # SO_PASSSEC, where the kernel has security labels
        one.setsockopt(socket.SOL_SOCKET, 34, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 3, 500000))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", 4, 0))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 7))
    os.set_blocking(two.fileno(), False)
    sock.attach_filter(two, ACCEPT_ALL)
    os.fchmod(two.fileno(), 0o640)


def fill_up(one: socket.socket, two: socket.socket) -> None:
    one.setblocking(False)
    try:
        while True:
            one.send(b"x" * 3000)
    except BlockingIOError:
        one.setblocking(True)


def with_rights(kind: int) -> Any:  # noqa: ANN401 - a function
    """Return what makes a pair with two descriptors of the box, and one of none, in its queue."""

    def make(folder: Path) -> Entries:
        entries: Entries = pair(kind, send(b"abc"))(folder)
        reading, writing = os.pipe()
        entries |= {"reading": OwnedFd(reading), "writing": OwnedFd(writing)}
        with sock.borrow(entries["one"].fileno()) as one:
            socket.send_fds(one, [b"xyz"], [writing, reading, writing])
            one.send(b"between")
            with OwnedFd(os.eventfd(0)) as stranger:
                socket.send_fds(one, [b"s"], [stranger.fileno()])
            one.send(b"rest")
        return entries

    return make


def observe_rights(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    seen: list[Any] = []
    with sock.borrow(fds["two"]) as two:
        for size in (2, 4, 8, 4, 4):
            try:
                data, got = receive(two, size)
            except BlockingIOError:
                break
            known = [
                next((name for name in fds if kcmp.same_file(fds[name], fd.fileno())), "?")
                for fd in got
            ]
            close_all(got)
            seen.append([str(data), [one for one in known if one != "?"]])
    return seen


def through_listener(folder: Path) -> Entries:
    path = str(folder / "listener")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        client.connect(path)
        accepted, _ = listener.accept()
        client.send(b"hello")
        return dict(zip(("one", "two"), owned(client, accepted), strict=True))


def bound_datagrams(folder: Path) -> Entries:
    one, two = (socket.socket(socket.AF_UNIX, DGRAM) for _ in range(2))
    one.bind(str(folder / "one"))
    two.bind(b"\0fdbox-test " + os.fsencode(folder))
    one.connect(two.getsockname())
    two.connect(one.getsockname())
    one.send(b"to two")
    two.send(b"to one")
    return dict(zip(("one", "two"), owned(one, two), strict=True))


def observe_bound(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    names = []
    for fd in fds.values():
        with sock.borrow(fd) as lent:
            names.append(str(lent.getsockname()).replace(str(folder), ""))
            names.append(str(lent.getpeername()).replace(str(folder), ""))
    return [names, oct((folder / "one").stat().st_mode), observe(fds, folder)]


BIG = b"x" * 100_000
SAMPLES = [
    *(
        Sample(f"unix pair {name} {what}", PAIR, pair(kind, *changes), observe, disturb)
        for name, kind in (("stream", STREAM), ("dgram", DGRAM), ("seqpacket", SEQPACKET))
        for what, changes in (
            ("empty", ()),
            ("with messages", (send(b"a", b"bc", BIG), send_back(b"back"))),
            ("with options", (send(b"abcdef"), unusual)),
        )
    ),
    *(
        Sample(f"unix pair {name} {what}", PAIR, pair(kind, *changes), observe)
        for name, kind in (("stream", STREAM), ("dgram", DGRAM), ("seqpacket", SEQPACKET))
        for what, changes in (
            ("that sends no more", (send(b"last"), shut(socket.SHUT_WR))),
            ("that receives no more", (send(b"last"), shut(socket.SHUT_RD))),
            ("shut down", (send(b"last"), send_back(b"too"), shut(socket.SHUT_RDWR))),
        )
    ),
    *(
        Sample(f"unix pair {name} full", PAIR, pair(kind, fill_up), observe)
        for name, kind in (("dgram", DGRAM), ("seqpacket", SEQPACKET))
    ),
    # The bytes of a stream need less room when they are queued in larger pieces.
    Sample("unix pair stream full", PAIR, pair(STREAM, fill_up), observe_bytes),
    *(
        Sample(
            f"unix pair {name} with empty messages",
            PAIR,
            pair(kind, send(b"", b"a", b"", b"", b"b", b"")),
            observe,
            disturb,
        )
        for name, kind in (("dgram", DGRAM), ("seqpacket", SEQPACKET))
    ),
    *(
        Sample(
            f"unix pair {name} whose other end is closed",
            {"one": "unix-pair"},
            survivor(kind, send_back(b"left", b"more")),
            observe,
        )
        for name, kind in (("stream", STREAM), ("dgram", DGRAM), ("seqpacket", SEQPACKET))
    ),
    Sample(
        "unix pair reset",
        {"one": "unix-pair"},
        survivor(STREAM, send(b"never read"), send_back(b"left")),
        observe,
    ),
    *(
        Sample(
            f"unix pair {name} with descriptors",
            PAIR | {"reading": "pipe", "writing": "pipe"},
            with_rights(kind),
            observe_rights,
            disturb,
            lost=("anon_inode:[eventfd], which is in no entry of the box",),
        )
        for name, kind in (("stream", STREAM), ("dgram", DGRAM), ("seqpacket", SEQPACKET))
    ),
    Sample(
        "unix pair through a listener",
        PAIR,
        through_listener,
        observe,
        disturb,
        lost=("its name",),
    ),
    Sample("unix pair of bound datagrams", PAIR, bound_datagrams, observe_bound, disturb),
]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_an_end_whose_other_end_is_elsewhere_is_refused_and_both_are_named(world: World) -> None:
    one, two = socket.socketpair()
    with two, OwnedFd(one.detach()) as own:
        other = f"socket:[{os.fstat(two.fileno()).st_ino}]"
        with pytest.raises(CannotCarry) as caught:
            world.seal({"own": own})
    assert "'own'" in caught.value.message
    assert f"({other}) is open, and in no entry of the box" in caught.value.message


def test_a_connection_that_nobody_has_accepted_is_refused(world: World) -> None:
    client = socket.socket(socket.AF_UNIX)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"\0fdbox-test " + os.fsencode(world.folder))
        listener.listen()
        client.connect(listener.getsockname())
        with OwnedFd(client.detach()) as own, pytest.raises(CannotCarry, match="accepted"):
            world.seal({"own": own})


def test_a_datagram_socket_that_is_not_connected_back_is_refused(world: World) -> None:
    client, server = (socket.socket(socket.AF_UNIX, DGRAM) for _ in range(2))
    server.bind(b"\0fdbox-test " + os.fsencode(world.folder))
    client.connect(server.getsockname())
    entries = dict(zip(("client", "server"), owned(client, server), strict=True))
    world.made.append(entries)
    with pytest.raises(CannotCarry, match="sends to 'server', which is not connected to it"):
        world.seal(entries)


def test_an_urgent_byte_is_refused(world: World) -> None:
    entries = pair(STREAM)(world.folder)
    world.made.append(entries)
    with sock.borrow(entries["one"].fileno()) as one:
        one.send(b"!", socket.MSG_OOB)
    with pytest.raises(CannotCarry, match="MSG_OOB"):
        world.seal(entries)


def test_an_error_that_waits_is_not_taken_away(world: World) -> None:
    """A stream's is carried (a sample); that of a packet socket would be gone after looking at what is queued."""
    entries = survivor(SEQPACKET, send(b"never read"), send_back(b"left"))(world.folder)
    world.made.append(entries)
    with pytest.raises(CannotCarry, match="SO_ERROR"):
        world.seal(entries)
    with sock.borrow(entries["one"].fileno()) as one, pytest.raises(ConnectionResetError):
        one.recv(9)


def test_ends_that_wait_for_each_other_in_their_own_queue_are_refused(world: World) -> None:
    entries = pair(STREAM)(world.folder)
    world.made.append(entries)
    with sock.borrow(entries["one"].fileno()) as one:
        socket.send_fds(one, [b"x"], [entries["two"].fileno()])
    with pytest.raises(CannotCarry, match="depend on each other"):
        world.seal(entries)


def test_a_socket_of_another_network_namespace_is_told_of_at_once(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs to be root")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            LIBC.unshare(0x40000000)  # CLONE_NEWNET; Python 3.12 has it
            one, two = socket.socketpair()
            socket.send_fds(theirs, [b"x"], [one.fileno(), two.fileno()])
            os._exit(0)
        _, fds = receive(ours, 9) if os.waitpid(child, 0)[1] == 0 else (b"", [])
    entries = dict(zip(("one", "two"), fds, strict=True))
    world.made.append(entries)
    seen = look(fds[0].fileno())
    told = registry.recognise(seen).carriage(seen, world.carrier)
    assert "network namespace" in str(told.obstacle)
    with pytest.raises(CannotCarry, match="network namespace"):
        world.seal(entries)


# --- hostile components ----------------------------------------------------------------------------------------------


def component(*ends: Mapping[str, object]) -> Node:
    root = Node("")
    for number, end in enumerate(ends):
        node = root.add(f"file@{number}")
        known = {"type": STREAM, "flags": 0, "shutdown": 0, "mode": 0o777, "uid": 0, "gid": 0}
        for name, value in {**known, "reset": 0, **end}.items():
            if isinstance(value, bytes):
                node.set_data(name, value)
            elif isinstance(value, list):
                node.set_u32s(name, value)
            else:
                node.set_u32(name, value)  # type: ignore[arg-type]
    return root


CLOSED = 0xFFFFFFFF


@pytest.mark.parametrize(
    "ends",
    [
        [{"peer": 0}],
        [{"peer": 1}],
        [{"peer": 1}, {"peer": 1}],
        [{"peer": 1}, {"peer": CLOSED}],
        [{"peer": 1}, {"peer": 0, "type": DGRAM}],
        [{"peer": CLOSED, "type": 3}],
        [{"peer": CLOSED, "data": b"abc", "packets": [1]}],
    ],
)
def test_ends_that_no_pair_has_are_refused(ends: list[dict[str, object]]) -> None:
    loaded = list(KIND.load(component(*ends), Arrivals(FakeKernel(), OwnedFd)))
    assert isinstance(loaded[0], FdtError)
    close_all(one.fd for one in loaded if isinstance(one, Made))
