"""What a client says of a daemon that does not keep to the interface, or goes away: never less than a typed error."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox import errors
from fdbox.linux import memfd, scm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fdbox.linux.fd import OwnedFd


class Liar:
    """Answers every call with the same bytes and this many descriptors, then hangs up if it is told to."""

    def __init__(self, path: Path) -> None:
        self.answer, self.descriptors, self.hang_up, self.ended = b"", 0, False, False
        self.hang_up_once = False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        with ThreadPoolExecutor() as pool, self.listener:
            while True:
                connection, _ = self.listener.accept()
                if self.ended:
                    connection.close()
                    return
                pool.submit(self.lie, connection)

    def lie(self, connection: socket.socket) -> None:
        with connection:
            while connection.recv(1 << 16):
                if self.answer:
                    scm.send_with_fds(connection, self.answer, [0] * self.descriptors)
                if self.hang_up_once:
                    self.answer = b'{"parameters":{"entries":[]}}\0'
                    self.hang_up = self.hang_up_once = False
                    break
                if self.hang_up:
                    break

    def close(self, path: Path) -> None:
        self.ended = True
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
        self.thread.join(10)


@pytest.fixture
def liar(socket_path: Path) -> Iterator[Liar]:
    made = Liar(socket_path)
    yield made
    made.close(socket_path)


def attached(*entries: tuple[str, int]) -> bytes:
    listed = ",".join(f'{{"name":"{name}","fileDescriptor":{index}}}' for name, index in entries)
    return f'{{"parameters":{{"entries":[{listed}]}}}}\0'.encode()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("answer", "descriptors", "error", "text"),
    [
        (attached(("a", 0)), 1, errors.ProtocolError, "other entries"),
        (attached(("a", 0), ("b", 5)), 1, errors.ProtocolError, "no descriptor for 'b'"),
        (attached(("a", 0), ("a", 1)), 2, errors.ProtocolError, "no descriptor for 'a'"),
        (attached(("a", 0), ("b", -1)), 2, errors.ProtocolError, "no descriptor for 'b'"),
        (attached(("a", 0), ("b", 1), ("c", 2)), 3, errors.ProtocolError, "other entries"),
        (b'{"parameters":{"entries":7}}\0', 2, errors.ProtocolError, "makes no sense"),
        (b"[]\0", 1, errors.ProtocolError, "reply"),
        (b"{}\0", 0, errors.ProtocolError, "makes no sense"),
        (
            b'{"error":"io.fdbox.BoxNotFound","parameters":{"box":"b"}}\0',
            1,
            errors.BoxNotFound,
            "BoxNotFound",
        ),
        (
            b'{"error":"io.fdbox.BoxNotFound","parameters":[]}\0',
            1,
            errors.BoxNotFound,
            "BoxNotFound",
        ),
        (b'{"error":"com.example.Odd","parameters":{}}\0', 0, errors.FdboxError, "Odd"),
        (
            b'{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"names"}}\0',
            0,
            errors.FdboxError,
            "does not take 'names' in",
        ),
        (
            b'{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"m"}}\0',
            0,
            errors.FdboxError,
            "has no method",
        ),
    ],
)
def test_a_lie_is_an_error_and_leaves_no_descriptor(
    liar: Liar,
    socket_path: Path,
    answer: bytes,
    descriptors: int,
    error: type[Exception],
    text: str,
    *,
    asynchronous: bool,
) -> None:
    liar.answer, liar.descriptors = answer, descriptors
    with pytest.raises(error, match=text):
        get_both(socket_path, asynchronous=asynchronous)


def get_both(path: Path, *, asynchronous: bool) -> None:
    async def run() -> None:
        async with await fdbox.aio.connect(path) as client:
            await client.existing_box("b").get_many(["a", "b"])

    if asynchronous:
        asyncio.run(run())
    else:
        with fdbox.connect(path) as client:
            client.existing_box("b").get_many(["a", "b"])


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("answer", [b"", b'{"parameters":'])
def test_a_daemon_that_goes_away_is_lost(
    liar: Liar, socket_path: Path, answer: bytes, *, asynchronous: bool
) -> None:
    liar.answer, liar.hang_up = answer, True
    with pytest.raises(errors.ConnectionLost, match="is lost"):
        get_both(socket_path, asynchronous=asynchronous)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_lost_connection_is_made_anew(
    liar: Liar, socket_path: Path, *, asynchronous: bool
) -> None:
    """What changes nothing is asked again at once; what does is left to the caller, on a new connection."""

    async def run() -> None:
        async with await fdbox.aio.connect(socket_path) as client:
            box = client.existing_box("b")
            for _ in range(2):
                with pytest.raises(errors.ConnectionLost, match="list"):
                    await box.put("n", 0)
            liar.hang_up_once = True
            assert await box.list() == []
        with pytest.raises(errors.ConnectionLost):
            await box.list()

    liar.hang_up = True
    liar.answer = b'{"parameters":{"entries":['  # half an answer
    if asynchronous:
        asyncio.run(run())
        return
    with fdbox.connect(socket_path) as client:
        box = client.existing_box("b")
        for _ in range(2):
            with pytest.raises(errors.ConnectionLost, match="list"):
                box.put("n", 0)
        liar.hang_up_once = True
        assert box.list() == []
    with pytest.raises(errors.ConnectionLost):
        box.list()


def test_a_subscription_that_is_refused_keeps_nothing(liar: Liar, socket_path: Path) -> None:
    async def run() -> None:
        async with await fdbox.aio.connect(socket_path) as client:
            await client.subscribe("me")

    liar.answer = b'{"error":"io.fdbox.PermissionDenied","parameters":{}}\0'
    with fdbox.connect(socket_path) as client, pytest.raises(errors.PermissionDenied):
        client.subscribe("me")
    with pytest.raises(errors.PermissionDenied):
        asyncio.run(run())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_somebody_may_be_faster_to_create_a_memory(
    daemon_process: object,
    socket_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    asynchronous: bool,
) -> None:
    """`get` says that there is none, and then `put` says that there is one."""
    with fdbox.connect(socket_path) as other:
        box = other.box("b")
        faster = memfd.create("index", 4096)
        os.pwrite(faster.fileno(), b"theirs", 0)

        def late(name: str, size: int) -> OwnedFd:
            box.put(name, faster)
            return memfd.create(name, size)

        module = "aio" if asynchronous else "box"
        monkeypatch.setattr(f"fdbox.client.{module}.new_memory", late)
        with faster, memory_of(socket_path, asynchronous=asynchronous) as memory:
            assert memory.recovered
            assert memory[:6] == b"theirs"


def memory_of(path: Path, *, asynchronous: bool) -> fdbox.Memory:
    async def run() -> fdbox.Memory:
        async with await fdbox.aio.connect(path) as client:
            return await (await client.box("b")).memory("index", 4096)

    if asynchronous:
        return asyncio.run(run())
    with fdbox.connect(path) as client:
        return client.box("b").memory("index", 4096)


def test_bad_options_of_an_update_are_refused_before_it_begins(
    liar: Liar, socket_path: Path
) -> None:
    with fdbox.connect(socket_path) as client, pytest.raises(errors.UsageError, match="proceed"):
        next(client.update(0, None, "", on_deadline="wait"))
