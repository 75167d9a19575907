"""The client for asyncio: `await fdbox.aio.connect()`. The same operations as `sync`, awaited."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fdbox.address import default_socket
from fdbox.client import calls
from fdbox.client.calls import Answer, Descriptor, R, Request, UpdateOptions
from fdbox.client.memory import Memory, adopt, new_memory
from fdbox.errors import ConnectionLost, EntryExists, EntryNotFound
from fdbox.linux import scm
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.varlink import interface, wire

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from types import TracebackType

_PEEK = 1 << 16


class Channel:
    """One connection; calls from several tasks take turns. After a fault or a cancelled call it is closed."""

    def __init__(self, path: Path, sock: socket.socket) -> None:
        """Own a connected socket that does not block."""
        self.path = path
        self._sock = sock
        self._lock = asyncio.Lock()
        self._possible: asyncio.Future[None] | None = None
        self._decoder: wire.Decoder[OwnedFd] = wire.Decoder(wire.MAX_REPLY)

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Connect; ConnectionLost if nobody is there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(sock, os.fspath(path))
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                text = f"no daemon at {path}: {error.strerror or error}"
                raise ConnectionLost(text) from error
            raise
        return cls(path, sock)

    @property
    def closed(self) -> bool:
        """Whether it was closed, by its user or because it was lost."""
        return self._sock.fileno() < 0

    async def call(self, request: Request[R]) -> Answer[R]:
        """Return the answer to a call, or raise the error that it is."""
        async with self._lock:
            message = await self._exchange(request)
        return calls.interpret(request, message)

    async def stream(self, request: Request[R]) -> AsyncIterator[R]:
        """Yield the replies to a call with `more`."""
        async with self._lock:
            answer = calls.interpret(request, await self._exchange(request))
            close_all(answer.descriptors)
            yield answer.parameters
            while answer.continues:
                answer = calls.interpret(request, await self._exchange(None))
                close_all(answer.descriptors)
                yield answer.parameters

    def close(self) -> None:
        """Close the connection; a task that waits for it gets ConnectionLost."""
        self._unhook()
        close_all(self._decoder.drain())
        self._sock.close()

    def _unhook(self) -> None:
        """Take the socket out of the event loop while its number is its own, and wake who waits."""
        possible, self._possible = self._possible, None
        if possible is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock.fileno())
            loop.remove_writer(self._sock.fileno())
            if not possible.done():
                possible.set_result(None)

    async def _until(self, add: Callable[..., object]) -> None:
        """Wait until the event loop says that the socket can be read or written."""
        possible = self._possible = asyncio.get_running_loop().create_future()

        def ready() -> None:
            if not possible.done():
                possible.set_result(None)

        add(self._sock.fileno(), ready)
        try:
            await possible
        finally:
            self._unhook()

    async def _exchange(self, request: Request[R] | None) -> wire.Message[OwnedFd]:
        text = b"" if request is None else request.encode()
        try:
            if request is not None:
                await self._send(memoryview(text), request.descriptors)
            message = None
            while message is None:
                message = self._decoder.feed(*await self._chunk())
        except BaseException as error:
            raise calls.lost(error, self.path, self.close, is_closed=self.closed) from error
        return message

    async def _send(self, text: memoryview, descriptors: tuple[int, ...]) -> None:
        loop = asyncio.get_running_loop()
        while text:
            try:
                sent = scm.send_with_fds(self._sock, text, descriptors)
            except BlockingIOError:
                await self._until(loop.add_writer)
            else:
                text, descriptors = text[sent:], ()

    async def _chunk(self) -> tuple[bytes, builtins.list[OwnedFd]]:
        loop = asyncio.get_running_loop()
        while True:
            try:
                seen = scm.peek(self._sock, _PEEK)
            except BlockingIOError:
                await self._until(loop.add_reader)
                continue
            if not seen:
                raise EOFError("the daemon closed the connection")
            return scm.receive_with_fds(self._sock, wire.chunk_length(seen))


class Box:
    """A named set of entries; every method asks the daemon. `fdbox.Box` says more of each."""

    def __init__(self, client: Client, name: str, owner: int | None) -> None:
        """Only a client does this."""
        self._client = client
        self.name = name
        self.owner = owner

    async def put(
        self, name: str, descriptor: Descriptor, *, replace: bool = False
    ) -> interface.Entry:
        """Put a descriptor under `name`."""
        return (await self.put_many({name: descriptor}, replace=replace))[0]

    async def put_many(
        self, entries: Mapping[str, Descriptor], *, replace: bool = False
    ) -> builtins.list[interface.Entry]:
        """Put up to 253 descriptors, all or none."""
        request = calls.put(self.name, self.owner, entries, replace=replace)
        return (await self._client.call(request)).parameters.entries

    async def get(self, name: str) -> OwnedFd:
        """Return the descriptor under `name`."""
        return (await self.get_many([name]))[name]

    async def get_many(self, names: Iterable[str]) -> dict[str, OwnedFd]:
        """Return the descriptors under `names`, all or an error."""
        found: dict[str, OwnedFd] = {}
        wanted = list(dict.fromkeys(names))
        try:
            for request in calls.get(self.name, self.owner, wanted):
                calls.sort_out(await self._client.call(request), found)
            calls.check_complete(found, wanted)
        except BaseException:
            close_all(found.values())
            raise
        return found

    async def list(self) -> builtins.list[interface.Entry]:
        """Return what is in the box."""
        request = calls.list_entries(self.name, self.owner)
        return (await self._client.call(request)).parameters.entries

    async def remove(self, *names: str) -> None:
        """Remove entries."""
        await self._client.call(calls.remove(self.name, self.owner, names))

    async def seal(self) -> interface.Box:
        """Freeze and save everything in the box."""
        return (await self._client.call(calls.seal(self.name, self.owner))).parameters.box

    async def unseal(self) -> interface.Box:
        """Let the originals go on where they are."""
        return (await self._client.call(calls.unseal(self.name, self.owner))).parameters.box

    async def compact(self) -> builtins.list[interface.Compacted]:
        """Put memory together into huge pages, in place; BoxSealed."""
        request = calls.compact(self.name, self.owner)
        return (await self._client.call(request)).parameters.entries

    async def export(self, file: Descriptor) -> int:
        """Write the box to an empty file, for another machine; return its bytes."""
        request = calls.export_box(self.name, self.owner, file)
        return (await self._client.call(request)).parameters.bytes

    async def delete(self) -> None:
        """Delete the box and let go of everything in it."""
        await self._client.call(calls.delete_box(self.name, self.owner))

    async def memory(self, name: str, size: int | None = None, *, huge: bool = True) -> Memory:
        """Return the memory under `name`, recovered if it is there, else created with `size` bytes."""
        try:
            return adopt(name, await self.get(name), size, huge=huge, recovered=True)
        except EntryNotFound:
            if size is None:
                raise
        with new_memory(name, size) as fresh:
            try:
                await self.put(name, fresh)
            except EntryExists:  # somebody was faster
                return adopt(name, await self.get(name), size, huge=huge, recovered=True)
            return adopt(name, fresh.dup(), size, huge=huge, recovered=False)


class Subscription:
    """Iterates over what the daemon says of updates; `ready` answers *prepare*."""

    def __init__(self, client: Client, name: str, path: Path) -> None:
        """Only `Client.subscribe` does this."""
        self._client = client
        self._name = name
        self._path = path
        self._channel: Channel | None = None
        self._closed = False
        self.subscriber: str = ""

    async def subscribe(self) -> None:
        """Subscribe on a connection of its own; returns when the daemon has noted it."""
        channel = await Channel.open(self._path)
        events = channel.stream(calls.subscribe(self._name))
        try:
            self.subscriber = (await anext(events)).subscriber
        except BaseException:
            channel.close()
            raise
        self._channel, self._events = channel, events

    async def __aiter__(self) -> AsyncIterator[interface.SubscribeReply]:
        """Yield `prepare` and `aborted` events as they come; as `fdbox.Subscription` when the connection is lost."""
        event = ""
        while True:
            try:
                async for reply in self._events:
                    event = reply.event
                    yield reply
                return  # noqa: TRY300 - the end of what it iterates over
            except ConnectionLost:
                if self._closed:
                    raise
            await self.subscribe()
            if event == "prepare":
                event = "aborted"
                yield interface.SubscribeReply(event=event, subscriber=self.subscriber)

    async def ready(self) -> None:
        """Say that the last writing is done."""
        await self._client.call(calls.ready(self.subscriber))

    def close(self) -> None:
        """Hear no more."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()


class Client:
    """A connection to the daemon, made anew when it is lost; an asynchronous context manager."""

    def __init__(self, channel: Channel) -> None:
        """Only `connect` does this."""
        self._channel = channel
        self._connecting = asyncio.Lock()
        self._closed = False

    async def call(self, request: Request[R]) -> Answer[R]:
        """Return the answer to a call, or raise the error that it is; a lost connection as in `fdbox.Client.call`."""
        for _ in range(calls.ATTEMPTS - 1):
            try:
                return await (await self._connected()).call(request)
            except ConnectionLost as lost:
                if self._closed or not calls.may_repeat(request, lost):
                    raise
        return await (await self._connected()).call(request)

    async def _connected(self) -> Channel:
        async with self._connecting:
            if self._channel.closed and not self._closed:
                self._channel = await Channel.open(self._channel.path)
            return self._channel

    async def box(self, name: str, owner: int | None = None, *, exclusive: bool = False) -> Box:
        """Return the box, created if it is not there (always created with `exclusive`, else BoxExists)."""
        answer = await self.call(calls.create_box(name, owner, exclusive=exclusive))
        return Box(self, answer.parameters.box.name, answer.parameters.box.owner)

    def existing_box(self, name: str, owner: int | None = None) -> Box:
        """Return the box without creating it; BoxNotFound comes with the first call if it is not there."""
        return Box(self, name, owner)

    async def import_box(
        self, file: Descriptor, name: str | None = None, owner: int | None = None
    ) -> interface.ImportReply:
        """Make a new box of a file that was exported on another machine; return it, and what is lost of it. For root."""
        request = calls.import_box(name, owner, file)
        return (await self.call(request)).parameters

    async def boxes(self) -> list[interface.Box]:
        """Return all boxes that the caller may see."""
        return (await self.call(calls.list_boxes())).parameters.boxes

    async def status(self) -> interface.StatusReply:
        """Return how the daemon is."""
        return (await self.call(calls.status())).parameters

    async def update(  # noqa: PLR0913 - the options of an update
        self,
        kernel: Descriptor | None,
        initrd: Descriptor | None,
        command_line: str,
        *,
        dry_run: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - the daemon's deadline for its subscribers
        on_deadline: str | None = None,
        on_late_write: str | None = None,
        images_only: bool = False,
        force: bool = False,
    ) -> AsyncIterator[interface.UpdateReply]:
        """Yield where the update stands, from a connection of its own."""
        options = UpdateOptions(
            dry_run=dry_run,
            timeout=timeout,
            on_deadline=on_deadline,
            on_late_write=on_late_write,
            images_only=images_only,
            force=force,
        )
        request = calls.update(kernel, initrd, command_line, options)
        channel = await Channel.open(self._channel.path)
        try:
            async for reply in channel.stream(request):
                yield reply
        finally:
            channel.close()

    async def last_update(self) -> interface.LastUpdateReply:
        """Return how the last update went; NoUpdate if nothing is known of one."""
        return (await self.call(calls.last_update())).parameters

    async def predict(self) -> interface.PredictReply:
        """Return how the memory in all boxes lies, and what that will cost an update. For root."""
        return (await self.call(calls.predict())).parameters

    async def abort_update(self) -> None:
        """Call the update off."""
        await self.call(calls.abort_update())

    async def reexec(self) -> str:
        """Have the code now on disk take over from the daemon; return its version. It may still be starting."""
        return (await self.call(calls.reexec())).parameters.version

    async def subscribe(self, name: str) -> Subscription:
        """Hear of updates, on a connection of its own."""
        subscription = Subscription(self, name, self._channel.path)
        await subscription.subscribe()
        return subscription

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._channel.close()

    async def __aenter__(self) -> Self:
        """Close at the end."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()


async def connect(path: str | os.PathLike[str] | None = None) -> Client:
    """Return a client of the daemon at `path`; ConnectionLost if nobody is there."""
    return Client(await Channel.open(default_socket() if path is None else Path(path)))
