"""One client's connection: calls come in one at a time, each is served, its reply goes out, then the next is read.

The rules that this file keeps, and why:

- Nothing is read ahead. While a call is served or a reply waits for room, at most one read event is looked at: the end of
  the stream means the peer is gone; bytes mean that it pipelines, and then the socket is watched for hang-up only.
- A message with descriptors is one `sendmsg`. What the kernel did not take of it goes later, without descriptors.
- ETOOMANYREFS (too many descriptors in flight for this user) leaves a socket writable: wait on a timer, never spin.
- Half a message, read or written, has a deadline, for it can pin 253 descriptors.
- Received descriptors that no handler took are closed whatever happens, and off the event loop: `close` can block.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from fdbox.errors import FdboxError, InvalidDescriptor, KernelError, ProtocolError
from fdbox.linux import scm
from fdbox.linux.fd import OwnedFd, dup
from fdbox.varlink import wire
from fdbox.varlink.dispatch import Dispatcher, Invocation, Refusal

if TYPE_CHECKING:
    import socket

    from fdbox.service.access import Peer

log: logging.Logger = logging.getLogger(__name__)

_PEEK_SMALL = 4096
_PEEK_LARGE = 1 << 16
_RETRY_SECONDS = 0.05


class Call:
    """One call, as a handler sees it. A descriptor that is not taken is closed when the call ends."""

    __slots__ = ("descriptors", "more", "parameters", "peer")

    def __init__(
        self,
        parameters: msgspec.Struct,
        descriptors: list[OwnedFd | None],
        peer: Peer,
        *,
        more: bool,
    ) -> None:
        """Share the list of descriptors with the connection; a slot that was taken is None."""
        self.parameters: msgspec.Struct = parameters
        self.descriptors: list[OwnedFd | None] = descriptors
        self.peer: Peer = peer
        self.more: bool = more

    def brought(self, indices: Sequence[int]) -> list[OwnedFd]:
        """Return the descriptors of these numbers, borrowed; `take` each to own it.

        Raises:
            InvalidDescriptor: none came under a number, or it is named twice.
        """
        came = self.descriptors
        found = [came[index] if 0 <= index < len(came) else None for index in indices]
        if None in found or len(set(indices)) != len(indices):
            bad = next(i for n, i in enumerate(indices) if found[n] is None or i in indices[:n])
            raise InvalidDescriptor(
                f"no descriptor number {bad} came with the call, or it is named twice"
            )
        return [fd for fd in found if fd is not None]

    def take(self, index: int) -> OwnedFd:
        """Return descriptor `index`, which the caller owns from now on; errors as `brought`."""
        (descriptor,) = self.take_all([index])
        return descriptor

    def take_all(self, indices: Sequence[int]) -> list[OwnedFd]:
        """Return the descriptors of these numbers, all or none, owned from now on; errors as `brought`."""
        found = self.brought(indices)
        for index in indices:
            self.descriptors[index] = None
        return found


class Reply(msgspec.Struct):
    """One reply. The server closes every `OwnedFd` in it after sending; a bare int is borrowed and stays open.

    `last` False says that more replies follow; only for methods that may answer more than once.
    """

    parameters: msgspec.Struct
    descriptors: Sequence[OwnedFd | int] = ()
    last: bool = True


Handler = Callable[[Call], Reply | Coroutine[Any, Any, Reply] | AsyncIterator[Reply]]


class Host(Protocol):
    """What a connection needs of the server that accepted it."""

    loop: asyncio.AbstractEventLoop
    dispatcher: Dispatcher
    handlers: Mapping[str, Handler]
    stall_seconds: float

    def discard(self, descriptors: Sequence[OwnedFd | None]) -> None:
        """Close descriptors off the event loop."""

    def watch_hangup(self, fd: int, gone: Callable[[], None]) -> None:
        """Call `gone` once when the peer of this socket is gone."""

    def forget_hangup(self, fd: int) -> None:
        """Stop watching, if it was watched."""

    def closed(self, connection: Connection) -> None:
        """Take note that this connection is no more."""


class Connection:
    """A client's connection, from accept to close."""

    def __init__(self, sock: socket.socket, peer: Peer, host: Host) -> None:
        """Own `sock`, which does not block, and begin to read."""
        self.peer = peer
        self.task: asyncio.Task[Any] | None = None
        self._sock = sock
        self._fd = sock.fileno()
        self._host = host
        self._decoder: wire.Decoder[OwnedFd] = wire.Decoder()
        self._received: list[OwnedFd | None] = []
        self._oneway = self._serving = self._ended = self._closed = False
        self._reading = True
        self._out = b""
        self._out_descriptors: list[OwnedFd] = []
        self._drained: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        host.loop.add_reader(self._fd, self._guarded, self._readable)

    # --- reading ---------------------------------------------------------------------------------------------------

    def _guarded(self, step: Callable[[], None]) -> None:
        """Take one step; a fault ends this connection and nothing else."""
        try:
            step()
        except ProtocolError as error:
            log.info("closing the connection of process %d: %s", self.peer.pid, error.message)
            self.close()
        except (OSError, KernelError) as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                log.debug("connection of process %d: %s", self.peer.pid, error)
                self.close()
        except Exception:
            log.exception("closing the connection of process %d", self.peer.pid)
            self.close()

    def _readable(self) -> None:
        if self._serving or self._out:
            self._stirs_while_busy()
            return
        seen = scm.peek(self._sock, _PEEK_SMALL)
        if len(seen) == _PEEK_SMALL and seen.find(b"\0") < 0:
            seen = scm.peek(self._sock, _PEEK_LARGE)
        if not seen:
            self.close()
            return
        chunk, descriptors = scm.receive_with_fds(self._sock, wire.chunk_length(seen))
        message = self._decoder.feed(chunk, descriptors)
        if message is None:
            self._arm()
            return
        self._disarm()
        self._serve(message)

    def _stirs_while_busy(self) -> None:
        if scm.peek(self._sock, 1):
            self._stop_reading()
            self._host.watch_hangup(self._fd, self._gone)
        else:
            self._gone()

    def _gone(self) -> None:
        """Stop serving a peer that went away; a call that answers once is still finished."""
        self._ended = True
        self._stop_reading()
        if self.task is None or self.task.get_name() == "stream":
            self.close()

    def finish(self) -> None:
        """End the connection when nothing is owed to the peer any more: a call that was read is answered first.

        What the peer has sent beyond that is not read. The kernel tells it so (ECONNRESET), and it may call again.
        """
        self._ended = True
        self._stop_reading()
        is_stream = self.task is not None and self.task.get_name() == "stream"
        if is_stream or not (self._serving or self._out):
            self.close()

    def _stop_reading(self) -> None:
        if self._reading:
            self._host.loop.remove_reader(self._fd)
            self._reading = False

    # --- serving ---------------------------------------------------------------------------------------------------

    def _serve(self, message: wire.Message[OwnedFd]) -> None:
        self._received = [*message.descriptors]
        header = wire.decode_call(message.text)
        self._oneway = header.oneway
        try:
            result = self._invoke(header)
        except Refusal as refusal:
            self._send(wire.encode_error(refusal.name, refusal.parameters))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is an answer
            self._send(_error_reply(error))
        else:
            if not isinstance(result, Reply):
                self._begin(result)
                return
            self._send_reply(result)
        self._end_call()

    def _invoke(
        self, header: wire.CallHeader
    ) -> Reply | Coroutine[Any, Any, Reply] | AsyncIterator[Reply]:
        found = self._host.dispatcher.dispatch(header)
        if not isinstance(found, Invocation):
            return Reply(found)
        if self._received and not found.method.takes_descriptors:
            raise InvalidDescriptor(f"{found.name} takes no descriptors")
        call = Call(found.parameters, self._received, self.peer, more=header.more)
        return self._host.handlers[found.name](call)

    def _begin(self, result: Coroutine[Any, Any, Reply] | AsyncIterator[Reply]) -> None:
        self._serving = True
        # The handler's own coroutine is the task: one that waits for it would leave it alone if it were cancelled first.
        if inspect.iscoroutine(result):
            task = self.task = self._host.loop.create_task(result, name="answer")
            task.add_done_callback(self._answered)
        else:
            assert isinstance(result, AsyncIterator)
            self.task = self._host.loop.create_task(self._stream(result), name="stream")
            self.task.add_done_callback(self._task_done)

    def _answered(self, task: asyncio.Task[Reply]) -> None:
        if not task.cancelled():
            self._guarded(lambda: self._answer(task))
        self._finish_task(task)

    def _answer(self, task: asyncio.Task[Reply]) -> None:
        error = task.exception()
        if isinstance(error, Exception):
            self._send(_error_reply(error))
        else:
            self._send_reply(task.result())

    async def _stream(self, replies: AsyncIterator[Reply]) -> None:
        try:
            async with contextlib.aclosing(replies):  # type: ignore[type-var] # handlers are async generators
                async for reply in replies:
                    self._send_reply(reply)
                    await self._room()
                    if reply.last or self._closed:
                        return
            self._send(_error_reply(RuntimeError("a handler ended without a last reply")))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is an answer
            self._send(_error_reply(error))

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log.error("closing the connection of process %d", self.peer.pid, exc_info=error)
            self.close()
        self._finish_task(task)

    def _finish_task(self, task: asyncio.Task[Any]) -> None:
        self.task = None
        if task.cancelled():
            self.close()
        self._guarded(self._end_call)

    def _end_call(self) -> None:
        self._serving = False
        if self._received:
            left, self._received = self._received[:], []
            self._host.discard(left)
        self._resume()

    def _resume(self) -> None:
        if self._closed or self._serving or self._out:
            return
        if self._ended:
            self.close()
        elif not self._reading:
            self._host.forget_hangup(self._fd)
            self._host.loop.add_reader(self._fd, self._guarded, self._readable)
            self._reading = True

    # --- writing ---------------------------------------------------------------------------------------------------

    def _send_reply(self, reply: Reply) -> None:
        try:
            text = wire.encode_reply(reply.parameters, continues=not reply.last)
            self._send(text, reply.descriptors)
        finally:
            self._host.discard([fd for fd in reply.descriptors if isinstance(fd, OwnedFd)])

    def _send(self, text: bytes, descriptors: Sequence[OwnedFd | int] = ()) -> None:
        """Send, or keep for later what has no room; descriptors are borrowed (and copied if they must wait)."""
        if self._oneway or self._closed:
            return
        numbers = [fd if isinstance(fd, int) else fd.fileno() for fd in descriptors]
        try:
            sent = self._transmit(text, numbers)
        except (OSError, KernelError) as error:
            if error.errno not in _GONE:
                raise
            self.close()
            return
        if sent == len(text):
            return
        if not sent:
            self._out_descriptors = [dup(number) for number in numbers]
        self._out = text[sent:]
        self._arm()
        if self._retry is None:
            self._host.loop.add_writer(self._fd, self._guarded, self._writable)

    def _transmit(self, text: bytes, numbers: Sequence[int]) -> int:
        """Return how much the kernel took: nothing where there is no room, or too many descriptors are in flight."""
        try:
            return scm.send_with_fds(self._sock, text, numbers)
        except (OSError, KernelError) as error:
            if error.errno == errno.ETOOMANYREFS:
                self._host.loop.remove_writer(self._fd)
                self._retry = self._host.loop.call_later(
                    _RETRY_SECONDS, self._guarded, self._try_again
                )
            elif error.errno != errno.EAGAIN:
                raise
            return 0

    def _try_again(self) -> None:
        self._retry = None
        self._host.loop.add_writer(self._fd, self._guarded, self._writable)

    def _writable(self) -> None:
        sent = self._transmit(self._out, [fd.fileno() for fd in self._out_descriptors])
        if not sent:
            return
        held, self._out_descriptors = self._out_descriptors, []
        self._host.discard(held)
        self._out = self._out[sent:]
        if self._out:
            return
        self._host.loop.remove_writer(self._fd)
        self._disarm()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._resume()

    async def _room(self) -> None:
        while self._out:
            self._drained = self._host.loop.create_future()
            await self._drained

    # --- ending ----------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self._host.loop.call_later(self._host.stall_seconds, self._stalled)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stalled(self) -> None:
        log.info("closing the connection of process %d: half a message and no more", self.peer.pid)
        self.close()

    def close(self) -> None:
        """Close the connection and all descriptors that are only here; a call that is still served is cancelled."""
        if self._closed:
            return
        self._closed = True
        self._stop_reading()
        self._host.loop.remove_writer(self._fd)
        self._host.forget_hangup(self._fd)
        self._disarm()
        if self._retry is not None:
            self._retry.cancel()
        if self.task is not None and self.task is not asyncio.current_task(self._host.loop):
            self.task.cancel()
        left = [*self._received, *self._out_descriptors, *self._decoder.drain()]
        self._received[:] = [None] * len(self._received)
        self._out_descriptors, self._out = [], b""
        self._host.discard(left)
        self._sock.close()
        self._host.closed(self)


_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


def _error_reply(error: Exception) -> bytes:
    if not isinstance(error, FdboxError):
        log.error("a handler failed", exc_info=error)
        error = FdboxError(f"the daemon failed: {type(error).__name__}")
    return wire.encode_error(error.wire_name, error.parameters())
