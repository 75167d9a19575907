"""The blocking client: `fdbox.connect()`."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fdbox.address import default_socket
from fdbox.client import calls
from fdbox.client.box import Box
from fdbox.client.calls import Answer, Descriptor, R, Request, UpdateOptions
from fdbox.errors import ConnectionLost
from fdbox.linux import scm
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.varlink import interface, wire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_PEEK = 1 << 16


class Channel:
    """One connection; calls from several threads take turns. After a fault in the middle of a call it is closed."""

    def __init__(self, path: Path, timeout: float | None = None) -> None:
        """Connect; ConnectionLost if nobody is there, and later if nothing happens for `timeout` seconds."""
        self.path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        self._decoder: wire.Decoder[OwnedFd] = wire.Decoder(wire.MAX_REPLY)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if timeout is not None:  # for connect(2), too, when many wait at the socket
            limit = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            self._sock.connect(os.fspath(path))
        except OSError as error:
            self._sock.close()
            raise ConnectionLost(f"no daemon at {path}: {error.strerror or error}") from error

    @property
    def closed(self) -> bool:
        """Whether it was closed, by its user or because it was lost."""
        return self._sock.fileno() < 0

    def call(self, request: Request[R]) -> Answer[R]:
        """Return the answer to a call, or raise the error that it is."""
        with self._lock:
            self._send(request)
            message = self._receive()
        return calls.interpret(request, message)

    def stream(self, request: Request[R]) -> Iterator[R]:
        """Yield the replies to a call with `more`."""
        with self._lock:
            self._send(request)
            continues = True
            while continues:
                answer = calls.interpret(request, self._receive())
                close_all(answer.descriptors)
                continues = answer.continues
                yield answer.parameters

    def close(self) -> None:
        """Close the connection."""
        close_all(self._decoder.drain())
        with contextlib.suppress(OSError):  # it may be gone
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for it
        self._sock.close()

    def _send(self, request: Request[R]) -> None:
        text = memoryview(request.encode())
        try:
            sent = scm.send_with_fds(self._sock, text, request.descriptors)
            if sent < len(text):
                self._sock.sendall(text[sent:])
        except BaseException as error:
            raise self._lost(error) from error

    def _receive(self) -> wire.Message[OwnedFd]:
        try:
            message = None
            while message is None:
                message = self._decoder.feed(*self._chunk())
        except BaseException as error:
            raise self._lost(error) from error
        return message

    def _chunk(self) -> tuple[bytes, list[OwnedFd]]:
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN)
        if not waiting.poll(None if self._timeout is None else self._timeout * 1000):
            raise TimeoutError(f"the daemon has not answered in {self._timeout:.0f} s")
        seen = scm.peek(self._sock, _PEEK)
        if not seen:
            raise EOFError("the daemon closed the connection")
        return scm.receive_with_fds(self._sock, wire.chunk_length(seen))

    def _lost(self, error: BaseException) -> BaseException:
        """Return what to raise: what was read so far is of no use, so the connection is closed."""
        return calls.lost(error, self.path, self.close, is_closed=self.closed)


class Subscription:
    """Iterates over what the daemon says of updates; `ready` answers *prepare*."""

    def __init__(self, client: Client, name: str) -> None:
        """Subscribe on a connection of its own; returns when the daemon has noted it."""
        self._client = client
        self._name = name
        self._closed = False
        self._subscribe()

    def _subscribe(self) -> None:
        self._channel = Channel(self._client.path)
        self._events = self._channel.stream(calls.subscribe(self._name))
        try:
            self.subscriber: str = next(self._events).subscriber
        except BaseException:
            self._channel.close()
            raise

    def __iter__(self) -> Iterator[interface.SubscribeReply]:
        """Yield `prepare` and `aborted` events as they come; a connection that is lost is made anew.

        An update dies with the daemon that made it: it is told as `aborted`.
        """
        event = ""
        while True:
            try:
                for reply in self._events:
                    event = reply.event
                    yield reply
                return  # noqa: TRY300 - the end of what it iterates over
            except ConnectionLost:
                if self._closed:
                    raise
            self._subscribe()
            if event == "prepare":
                event = "aborted"
                yield interface.SubscribeReply(event=event, subscriber=self.subscriber)

    def ready(self) -> None:
        """Say that the last writing is done."""
        self._client.call(calls.ready(self.subscriber))

    def close(self) -> None:
        """Hear no more."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        """Close at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hear no more."""
        self.close()


class Client:
    """A connection to the daemon, made anew when it is lost; a context manager."""

    def __init__(self, path: Path, timeout: float | None = None) -> None:
        """Connect to the daemon's socket."""
        self.path = path
        self._timeout = timeout
        self._channel = Channel(path, timeout)
        self._connecting = threading.Lock()
        self._closed = False

    def call(self, request: Request[R]) -> Answer[R]:
        """Return the answer to a call, or raise the error that it is.

        When its connection is lost (the daemon is restarted, say), a call is made again if the daemon had not read it, or
        if it changes nothing. Another one raises ConnectionLost: nobody knows whether it was done.
        """
        for _ in range(calls.ATTEMPTS - 1):
            try:
                return self._connected().call(request)
            except ConnectionLost as lost:
                if self._closed or not calls.may_repeat(request, lost):
                    raise
        return self._connected().call(request)

    def _connected(self) -> Channel:
        with self._connecting:
            if self._channel.closed and not self._closed:
                self._channel = Channel(self.path, self._timeout)
            return self._channel

    def box(self, name: str, owner: int | None = None, *, exclusive: bool = False) -> Box:
        """Return the box, created if it is not there (always created with `exclusive`, else BoxExists)."""
        request = calls.create_box(name, owner, exclusive=exclusive)
        box = self.call(request).parameters.box
        return Box(self, box.name, box.owner)

    def existing_box(self, name: str, owner: int | None = None) -> Box:
        """Return the box without creating it; BoxNotFound comes with the first call if it is not there."""
        return Box(self, name, owner)

    def import_box(
        self, file: Descriptor, name: str | None = None, owner: int | None = None
    ) -> interface.ImportReply:
        """Make a new box of a file that was exported on another machine; return it, and what is lost of it. For root."""
        request = calls.import_box(name, owner, file)
        return self.call(request).parameters

    def boxes(self) -> list[interface.Box]:
        """Return all boxes that the caller may see."""
        return self.call(calls.list_boxes()).parameters.boxes

    def status(self) -> interface.StatusReply:
        """Return how the daemon is, and what the last handover brought and lost."""
        return self.call(calls.status()).parameters

    def update(  # noqa: PLR0913 - the options of an update
        self,
        kernel: Descriptor | None,
        initrd: Descriptor | None,
        command_line: str,
        *,
        dry_run: bool = False,
        timeout: float | None = None,
        on_deadline: str | None = None,
        on_late_write: str | None = None,
        images_only: bool = False,
        force: bool = False,
    ) -> Iterator[interface.UpdateReply]:
        """Yield where the update stands, from a connection of its own (so that `abort_update` can be called here)."""
        options = UpdateOptions(
            dry_run=dry_run,
            timeout=timeout,
            on_deadline=on_deadline,
            on_late_write=on_late_write,
            images_only=images_only,
            force=force,
        )
        request = calls.update(kernel, initrd, command_line, options)
        channel = Channel(self.path)
        try:
            yield from channel.stream(request)
        finally:
            channel.close()

    def last_update(self) -> interface.LastUpdateReply:
        """Return how the last update went; NoUpdate if nothing is known of one."""
        return self.call(calls.last_update()).parameters

    def predict(self) -> interface.PredictReply:
        """Return how the memory in all boxes lies, and what that will cost an update. For root."""
        return self.call(calls.predict()).parameters

    def abort_update(self) -> None:
        """Call the update off."""
        self.call(calls.abort_update())

    def reexec(self) -> str:
        """Have the code now on disk take over from the daemon; return its version. It may still be starting."""
        return self.call(calls.reexec()).parameters.version

    def subscribe(self, name: str) -> Subscription:
        """Hear of updates; `name` is shown to whoever waits for this program."""
        return Subscription(self, name)

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        """Close at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()


def connect(path: str | os.PathLike[str] | None = None, *, timeout: float | None = None) -> Client:
    """Return a client of the daemon at `path`, by default where `address.default_socket` says.

    With `timeout`, a call that has no answer for so many seconds raises ConnectionLost; updates and subscriptions wait.

    Raises:
        ConnectionLost: nobody is there.
    """
    return Client(default_socket() if path is None else Path(path), timeout)
