from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fdbox.errors import BoxNotFound, ConfigurationError, InvalidDescriptor, UsageError
from fdbox.linux import scm
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.service.connection import Call, Connection, Handler, Reply
from fdbox.service.server import Server
from fdbox.varlink import interface, wire

if TYPE_CHECKING:
    from pathlib import Path


def take_first(call: Call) -> Reply:
    call.take(0).close()
    return Reply(interface.EntriesReply(entries=[]))


def fail(call: Call) -> Reply:
    raise BoxNotFound("no box 'b'", box="b")


def crash(call: Call) -> Reply:
    raise ZeroDivisionError


def give(call: Call) -> Reply:
    assert isinstance(call.parameters, interface.NamesRequest)
    fds = [OwnedFd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) for _ in call.parameters.names]
    found = [
        interface.Attachment(name=name, file_descriptor=i)
        for i, name in enumerate(call.parameters.names)
    ]
    return Reply(interface.GetReply(entries=found), fds)


HANDLERS: dict[str, Handler] = {"Put": take_first, "Seal": fail, "Unseal": crash, "Get": give}
PUT = b'{"method":"io.fdbox.Put","parameters":{"box":"b","entries":[]}}\0'
SEAL = b'{"method":"io.fdbox.Seal","parameters":{"box":"b"}}\0'


def _once(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class Peer:
    """The other end of a connection, which says whatever it likes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def say(self, text: bytes, fds: list[int] | None = None) -> None:
        scm.send_with_fds(self.sock, text, fds or [])

    async def hear(self) -> tuple[dict[str, Any], list[OwnedFd]]:
        decoder: wire.Decoder[OwnedFd] = wire.Decoder(wire.MAX_REPLY)
        message = None
        while message is None:
            seen = await self.seen()
            assert seen, "the server closed the connection"
            message = decoder.feed(*scm.receive_with_fds(self.sock, wire.chunk_length(seen)))
        return msgspec.json.decode(message.text), message.descriptors

    async def error(self) -> str:
        said, fds = await self.hear()
        assert not fds
        return str(said.get("error"))

    async def seen(self) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return scm.peek(self.sock, 1 << 16)
            except ConnectionResetError:
                return b""
            except BlockingIOError:
                waiting: asyncio.Future[None] = loop.create_future()
                loop.add_reader(self.sock, _once, waiting)
                try:
                    await waiting
                finally:
                    loop.remove_reader(self.sock)


Scene = Callable[[Server, Callable[[], Peer]], Coroutine[Any, Any, None]]


def play(scene: Scene, handlers: dict[str, Handler] | None = None, **options: Any) -> None:  # noqa: ANN401 - Server's
    async def run() -> None:
        server = Server(HANDLERS if handlers is None else handlers, **options)
        peers = []

        def connect() -> Peer:
            ours, theirs = socket.socketpair()
            server.serve_connection(theirs)
            peers.append(Peer(ours))
            return peers[-1]

        try:
            async with asyncio.timeout(20):
                await scene(server, connect)
        finally:
            await server.close()
            for peer in peers:
                peer.sock.close()

    asyncio.run(run())


def nulls(count: int) -> list[OwnedFd]:
    return [OwnedFd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) for _ in range(count)]


def test_calls_and_errors() -> None:
    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        await peer.say(b'{"method":"org.varlink.service.GetInfo"}\0')
        said, _ = await peer.hear()
        assert said["parameters"]["interfaces"] == ["org.varlink.service", "io.fdbox"]
        await peer.say(SEAL)
        said, _ = await peer.hear()
        assert said["error"] == "io.fdbox.BoxNotFound"
        assert said["parameters"]["box"] == "b"
        await peer.say(SEAL.replace(b"Seal", b"Unseal"))
        assert await peer.error() == "io.fdbox.Failed"
        await peer.say(SEAL.replace(b"Seal", b"Fly"))
        assert await peer.error() == "org.varlink.service.MethodNotFound"

    play(scene)


def test_descriptors_in_and_out() -> None:
    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        for count in (1, 2, 253):
            fds = nulls(count)
            await peer.say(PUT, [fd.fileno() for fd in fds])
            close_all(fds)
            assert await peer.error() == "None"
        await peer.say(PUT)
        assert await peer.error() == "io.fdbox.InvalidDescriptor"
        fds = nulls(3)
        await peer.say(SEAL, [fd.fileno() for fd in fds])
        close_all(fds)
        assert await peer.error() == "io.fdbox.InvalidDescriptor"
        names = [str(n) for n in range(253)]
        parameters = interface.NamesRequest(box="b", names=names)
        await peer.say(wire.encode_call("io.fdbox.Get", parameters))
        said, got = await peer.hear()
        assert len(got) == len(said["parameters"]["entries"]) == 253
        close_all(got)

    play(scene)


def test_a_descriptor_is_taken_once() -> None:
    [fd] = nulls(1)
    call = Call(interface.Nothing(), [fd], peer=None, more=False)  # type: ignore[arg-type]
    with call.take(0):
        for index in (0, 1, -1):
            with pytest.raises(InvalidDescriptor):
                call.take(index)


def test_oneway_is_never_answered() -> None:
    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        fds = nulls(2)
        await peer.say(PUT[:-2] + b',"oneway":true}\0', [fd.fileno() for fd in fds])
        close_all(fds)
        await peer.say(SEAL[:-2] + b',"oneway":true}\0')
        await peer.say(b'{"method":"x.y","oneway":true}\0')
        await peer.say(SEAL)
        assert await peer.error() == "io.fdbox.BoxNotFound"

    play(scene)


def test_merged_messages_keep_their_descriptors() -> None:
    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        [fd] = nulls(1)
        await peer.say(SEAL)
        await peer.say(PUT, [fd.fileno()])
        await peer.say(PUT)
        fd.close()
        assert await peer.error() == "io.fdbox.BoxNotFound"
        assert await peer.error() == "None"
        assert await peer.error() == "io.fdbox.InvalidDescriptor"

    play(scene)


@pytest.mark.parametrize(
    "text",
    [b"garbage\0", b"\0", b'{"method":"x","fds":1}\0', b"x" * 5000 + b"\0", b"[" * 9000 + b"\0"],
)
def test_garbage_ends_only_its_connection(text: bytes) -> None:
    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        good, bad = connect(), connect()
        fds = nulls(253)
        await bad.say(text, [fd.fileno() for fd in fds])
        close_all(fds)
        assert await bad.seen() == b""
        await good.say(SEAL)
        assert await good.error() == "io.fdbox.BoxNotFound"
        assert server.connections == 1

    play(scene)


def test_half_a_message_has_a_deadline() -> None:
    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        idle, half = connect(), connect()
        fds = nulls(253)
        await half.say(PUT[:10], [fd.fileno() for fd in fds])
        close_all(fds)
        assert await half.seen() == b""
        await idle.say(SEAL)
        assert await idle.error() == "io.fdbox.BoxNotFound"

    play(scene, stall_seconds=0.02)


def test_descriptors_in_the_middle_of_a_message() -> None:
    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        fds = nulls(2)
        await peer.say(PUT[:10], [fds[0].fileno()])
        await peer.say(PUT[10:], [fds[1].fileno()])
        close_all(fds)
        assert await peer.seen() == b""

    play(scene)


def test_a_message_cut_off_by_hanging_up() -> None:
    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        fds = nulls(253)
        await peer.say(PUT[:10], [fd.fileno() for fd in fds])
        close_all(fds)
        peer.sock.shutdown(socket.SHUT_WR)
        assert await peer.seen() == b""
        assert server.connections == 0

    play(scene)


def test_a_reply_larger_than_the_socket_waits_for_room() -> None:
    entry = interface.Loss(box="b", owner=0, entry="e", reason="x" * 1000)

    def large(call: Call) -> Reply:
        status = interface.StatusReply(
            version="1",
            incarnation="i",
            phase="idle",
            waiting=[],
            carrier=None,
            obstacle="",
            remedy="",
            boxes=0,
            entries=0,
            arrived=0,
            lost=[entry] * 2000,
        )
        return Reply(status, nulls(2))

    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        await peer.say(b'{"method":"io.fdbox.Status"}\0')
        await peer.say(b'{"method":"io.fdbox.Status"}\0')
        for _ in range(2):
            said, fds = await peer.hear()
            assert len(said["parameters"]["lost"]) == 2000
            assert len(fds) == 2
            close_all(fds)

    play(scene, {"Status": large})


def test_a_peer_that_never_reads_is_given_up() -> None:
    def large(call: Call) -> Reply:
        return Reply(interface.Subscribe(name="x" * 5_000_000), nulls(2))

    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        await peer.say(b'{"method":"io.fdbox.Status"}\0')
        await ended(server)

    play(scene, {"Status": large}, stall_seconds=0.02)


async def ended(server: Server) -> None:
    """Wait until the server has no connection."""
    done = asyncio.get_running_loop().create_future()
    note = server.closed

    def closed(connection: Connection) -> None:
        note(connection)
        if not server.connections and not done.done():
            done.set_result(None)

    server.closed = closed  # type: ignore[method-assign]
    await done


def test_too_many_in_flight_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = scm.send_with_fds, iter([errno.ETOOMANYREFS] * 2)

    def refuse(sock: socket.socket, data: bytes, fds: list[int]) -> int:
        if fds and (code := next(refusals, None)):
            raise OSError(code, "too many references")
        return real(sock, data, fds)

    monkeypatch.setattr(scm, "send_with_fds", refuse)

    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        await peer.say(
            wire.encode_call("io.fdbox.Get", interface.NamesRequest(box="b", names=["n"]))
        )
        _, fds = await peer.hear()
        assert len(fds) == 1
        close_all(fds)
        assert next(refusals, None) is None

    play(scene)


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_stream_ends_with_its_peer(*, pipelined: bool) -> None:
    ended_streams = []

    async def subscribe(call: Call) -> AsyncIterator[Reply]:
        try:
            yield Reply(interface.SubscribeReply(event="subscribed", subscriber="1"), last=False)
            await asyncio.get_running_loop().create_future()
        finally:
            ended_streams.append(1)

    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        await peer.say(b'{"method":"io.fdbox.Subscribe","parameters":{"name":"n"},"more":true}\0')
        said, _ = await peer.hear()
        assert said["continues"]
        if pipelined:
            await peer.say(SEAL)
            await asyncio.sleep(0)
        peer.sock.close()
        await ended(server)

    play(scene, {"Subscribe": subscribe})
    assert ended_streams == [1]


def test_a_stream_with_a_last_reply_and_the_next_call() -> None:
    async def subscribe(call: Call) -> AsyncIterator[Reply]:
        yield Reply(interface.SubscribeReply(event="subscribed", subscriber="1"), last=False)
        await asyncio.sleep(0)
        yield Reply(interface.SubscribeReply(event="aborted", subscriber="1"))

    async def slow(call: Call) -> Reply:
        await asyncio.sleep(0)
        raise BoxNotFound("none")

    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        peer = connect()
        await peer.say(b'{"method":"io.fdbox.Subscribe","parameters":{"name":"n"},"more":true}\0')
        await peer.say(SEAL)
        assert (await peer.hear())[0]["continues"]
        assert "continues" not in (await peer.hear())[0]
        assert await peer.error() == "io.fdbox.BoxNotFound"

    play(scene, {"Subscribe": subscribe, "Seal": slow})


def test_connections_per_user_are_limited() -> None:
    async def scene(server: Server, connect: Callable[[], Peer]) -> None:
        first, _, third = connect(), connect(), connect()
        assert await third.seen() == b""
        first.sock.close()
        fourth = connect()
        assert await fourth.seen() == b""

    play(scene, connections_per_user=2)


def test_listening(socket_path: Path) -> None:
    async def run() -> None:
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(socket_path))
        stale.close()
        first, second = Server(HANDLERS), Server(HANDLERS)
        await first.listen(socket_path, 0o600)
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
        with pytest.raises(UsageError, match="another daemon"):
            await second.listen(socket_path)
        await second.close()
        first.begin()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(socket_path))
            peer = Peer(sock)
            await peer.say(SEAL)
            assert await peer.error() == "io.fdbox.BoxNotFound"
        await first.close()
        assert not socket_path.exists()
        socket_path.write_text("precious")
        third = Server(HANDLERS)
        with pytest.raises(ConfigurationError, match="not a socket"):
            await third.listen(socket_path)
        await third.close()
        assert socket_path.read_text() == "precious"

    asyncio.run(run())
