from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

import fdbox
from fdbox import errors
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.service.connection import Call, Handler, Reply
from fdbox.service.server import Server
from fdbox.varlink import interface

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


class Store:
    """The smallest daemon: one box, no rules."""

    def __init__(self) -> None:
        self.held: dict[str, OwnedFd] = {}
        self.readied: list[str] = []

    def handlers(self) -> dict[str, Handler]:
        return {
            "CreateBox": self.create,
            "Put": self.put,
            "Get": self.get,
            "Remove": self.remove,
            "ListEntries": self.entries,
            "Subscribe": self.subscribe,
            "Ready": self.ready,
            "Update": self.update,
        }

    def create(self, call: Call) -> Reply:
        box = interface.Box(name="b", owner=os.getuid(), state="open", entries=len(self.held))
        return Reply(interface.CreateBoxReply(box=box, created=True))

    def put(self, call: Call) -> Reply:
        assert isinstance(call.parameters, interface.Put)
        for entry in call.parameters.entries:
            if entry.name in self.held and not call.parameters.replace:
                raise errors.EntryExists("taken", box="b", entry=entry.name)
        for entry in call.parameters.entries:
            if old := self.held.pop(entry.name, None):
                old.close()
            self.held[entry.name] = call.take(entry.file_descriptor)
        return self.entries(call)

    def get(self, call: Call) -> Reply:
        assert isinstance(call.parameters, interface.NamesRequest)
        names = call.parameters.names
        for name in names:
            if name not in self.held:
                raise errors.EntryNotFound("none", box="b", entry=name)
        entries = [interface.Attachment(name=n, file_descriptor=i) for i, n in enumerate(names)]
        borrowed = [self.held[name].fileno() for name in names]
        return Reply(interface.GetReply(entries=entries), borrowed)

    def remove(self, call: Call) -> Reply:
        assert isinstance(call.parameters, interface.NamesRequest)
        for name in call.parameters.names:
            self.held.pop(name).close()
        return Reply(interface.Nothing())

    def entries(self, call: Call) -> Reply:
        found = [
            interface.Entry(
                name=n, kind="k", label="", size=None, carrier=None, obstacle="", remedy=""
            )
            for n in self.held
        ]
        return Reply(interface.EntriesReply(entries=found))

    async def subscribe(self, call: Call) -> AsyncIterator[Reply]:
        yield Reply(interface.SubscribeReply(event="subscribed", subscriber="s1"), last=False)
        yield Reply(interface.SubscribeReply(event="prepare", subscriber="s1"))

    def ready(self, call: Call) -> Reply:
        assert isinstance(call.parameters, interface.Ready)
        self.readied.append(call.parameters.subscriber)
        return Reply(interface.Nothing())

    async def update(self, call: Call) -> AsyncIterator[Reply]:
        yield Reply(interface.UpdateReply(phase="loading", waiting=[], detail=""), last=False)
        raise errors.UpdateAborted("called off")


@pytest.fixture
def store(socket_path: Path) -> Iterator[Store]:
    """Run a daemon in a thread until the test ends."""
    store, up, down = Store(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = Server(store.handlers())
        await server.listen(socket_path)
        server.begin()
        up.set()
        await down.wait()
        await server.close()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_until_complete(loop.shutdown_default_executor())

    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(10)
    yield store
    loop.call_soon_threadsafe(down.set)
    thread.join(10)
    loop.close()
    close_all(store.held.values())


def test_put_get_list_remove(store: Store, socket_path: Path) -> None:
    with fdbox.connect(socket_path) as client, memfd.create("m", 5) as fd:
        box = client.box("b")
        assert box.put("m", fd).name == "m"
        with box.get("m") as got:
            assert os.fstat(got.fileno()).st_ino == os.fstat(fd.fileno()).st_ino
        with pytest.raises(errors.EntryExists) as caught:
            box.put("m", fd)
        assert caught.value.context["entry"] == "m"
        box.put("m", fd, replace=True)
        assert [entry.name for entry in box.list()] == ["m"]
        box.remove("m")
        with pytest.raises(errors.EntryNotFound):
            box.get("m")
        with pytest.raises(errors.FdboxError):
            client.status()


def test_more_than_a_message_carries(store: Store, socket_path: Path) -> None:
    with fdbox.connect(socket_path) as client, memfd.create("m", 5) as fd:
        box = client.box("b")
        names = [f"n{number}" for number in range(300)]
        with pytest.raises(errors.UsageError, match="300"):
            box.put_many(dict.fromkeys(names, fd))
        box.put_many(dict.fromkeys(names[:253], fd))
        box.put_many(dict.fromkeys(names[253:], fd))
        got = box.get_many(names)
        assert list(got) == names
        close_all(got.values())
        with pytest.raises(errors.EntryNotFound):
            box.get_many([*names, "no"])


def test_a_closed_descriptor(store: Store, socket_path: Path) -> None:
    with fdbox.connect(socket_path) as client:
        box = client.box("b")
        with pytest.raises(errors.InvalidDescriptor):
            box.put("m", 999_999)
        assert box.list() == [], "the connection is as good as before"


NO_TEXT = "\udcff"


def test_a_name_that_is_no_text_is_refused(store: Store, socket_path: Path) -> None:
    with fdbox.connect(socket_path) as client, memfd.create("m", 5) as fd:
        box = client.box("b")
        for refused in (
            lambda: client.box(NO_TEXT),
            lambda: box.put(NO_TEXT, fd),
            lambda: box.get(NO_TEXT),
            lambda: box.memory(NO_TEXT, size=1),
            lambda: list(client.update(fd, None, NO_TEXT)),
        ):
            with pytest.raises(errors.UsageError, match=r"udcff.* is no UTF-8"):
                refused()
        assert box.list() == [], "the connection is as good as before"

    async def run() -> None:
        async with await fdbox.aio.connect(socket_path) as client:
            with pytest.raises(errors.UsageError, match="is no UTF-8"):
                await client.box(NO_TEXT)
            assert await (await client.box("b")).list() == []

    asyncio.run(run())


def test_memory_is_created_then_recovered(store: Store, socket_path: Path) -> None:
    with fdbox.connect(socket_path) as client:
        box = client.box("b")
        with pytest.raises(errors.EntryNotFound):
            box.memory("index")
        with box.memory("index", size=8192) as mem:
            assert (mem.recovered, mem.size, mem.name, len(mem)) == (False, 8192, "index", 8192)
            array = np.frombuffer(mem, dtype=np.uint8)
            array[:3] = (1, 2, 3)
            del array
            assert os.fstat(mem.fileno()).st_size == 8192
        with box.memory("index") as mem:
            assert mem.recovered
            assert mem[:4] == b"\1\2\3\0"
            with mem.buffer as view:
                assert not view.readonly
        with pytest.raises(errors.SizeMismatch):
            box.memory("index", size=1)
        with pytest.raises(errors.UsageError):
            box.memory("other", size=0)
        reader, writer = os.pipe()
        with OwnedFd(reader) as one, OwnedFd(writer):
            box.put("pipe", one)
        with pytest.raises(errors.UsageError, match="not writable memory"):
            box.memory("pipe", size=1)


def test_updates(store: Store, socket_path: Path) -> None:
    with fdbox.connect(socket_path) as client, memfd.create("k", 1) as kernel:
        with client.subscribe("me") as events:
            assert [event.event for event in events] == ["prepare"]
            events.ready()
        assert store.readied == ["s1"]
        replies = client.update(kernel, None, "quiet", dry_run=True)
        assert next(replies).phase == "loading"
        with pytest.raises(errors.UpdateAborted):
            next(replies)


def test_nobody_there(socket_path: Path) -> None:
    with pytest.raises(errors.ConnectionLost):
        fdbox.connect(socket_path)
    with pytest.raises(errors.ConnectionLost):
        asyncio.run(fdbox.aio.connect(socket_path))


def test_asyncio(store: Store, socket_path: Path) -> None:
    async def run() -> None:
        async with await fdbox.aio.connect(socket_path) as client:
            box = await client.box("b")
            with await box.memory("index", 4096) as mem:
                assert not mem.recovered
            with await box.memory("index") as mem:
                assert mem.recovered
            got = await box.get_many(["index"])
            close_all(got.values())
            with pytest.raises(errors.EntryNotFound):
                await box.get("none")
            await asyncio.gather(*(box.list() for _ in range(5)))
            events = await client.subscribe("me")
            assert [event.event async for event in events] == ["prepare"]
            await events.ready()
            events.close()
            with memfd.create("k", 1) as kernel, pytest.raises(errors.UpdateAborted):
                async for reply in client.update(kernel, kernel, "quiet"):
                    assert reply.phase == "loading"
            await box.remove("index")
        assert store.readied == ["s1"]

    asyncio.run(run())
