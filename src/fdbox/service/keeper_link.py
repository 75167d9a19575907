"""The line to the keeper: datagrams in order, as fast as its queue takes them, and barriers that say when it has them."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import KeeperGone
from fdbox.linux import sdnotify
from fdbox.linux.fd import OwnedFd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log: logging.Logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.01
#: what a datagram socket says that has lost its peer, or its way there
_CUT = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE)


class _Letter(NamedTuple):
    """A message on its way."""

    fields: Mapping[str, str]
    fds: Sequence[int]
    #: done when it was sent, or cannot be
    sent: asyncio.Future[None]


class KeeperLink:
    """A connection to NOTIFY_SOCKET; our parent is at its other end. Make it inside a running event loop."""

    def __init__(self, notify_socket: str) -> None:
        """Connect; OSError if nobody is there."""
        self._address = notify_socket
        self._sock = sdnotify.connect(notify_socket)
        self._parent = os.getppid()
        self._outbox: deque[_Letter] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._lost = False

    def tell(self, fields: Mapping[str, str], fds: Sequence[int] = ()) -> None:
        """Send a message after all that were told before. Its descriptors are borrowed until a barrier after it."""
        self._post(fields, fds)

    def _post(self, fields: Mapping[str, str], fds: Sequence[int]) -> _Letter:
        loop = asyncio.get_running_loop()
        letter = _Letter(fields, fds, loop.create_future())
        self._outbox.append(letter)
        if self._sending is None:
            self._sending = loop.create_task(self._send_all())
        return letter

    async def barrier(self) -> None:
        """Return when the keeper has done everything that it was told.

        Raises:
            KeeperGone: it is no more.
        """
        reading, writing = (OwnedFd(end) for end in os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        with reading:
            with writing:
                await self._post({"BARRIER": "1"}, [writing.fileno()]).sent
            await _closed(reading.fileno())
        # If it died, what was on its way was closed with it, and looks like an answer.
        if not self.is_up:
            raise KeeperGone("the keeper is gone, and nothing new can be made safe")

    @property
    def is_up(self) -> bool:
        """Whether the keeper is there, and can be told."""
        return not self._lost and self._is_alive()

    async def close(self) -> None:
        """Send what is left, and hang up."""
        if self._sending is not None:
            await asyncio.gather(self._sending, return_exceptions=True)
        self._sock.close()

    async def _send_all(self) -> None:
        try:
            while self._outbox:
                await self._send(self._outbox[0].fields, self._outbox[0].fds)
                _settle(self._outbox.popleft().sent)
        except OSError as error:
            self._lost = True
            log.error("the keeper cannot be told anything any more: %s", error)  # noqa: TRY400
        finally:
            for letter in self._outbox:
                _settle(letter.sent)
            self._outbox.clear()
            self._sending = None

    async def _send(self, fields: Mapping[str, str], fds: Sequence[int]) -> None:
        while True:
            try:
                sdnotify.send(self._sock, fields, fds)
            except BlockingIOError:
                await _writable(self._sock.fileno())
            except OSError as error:
                if error.errno == errno.EBADF:  # whoever sent it was cancelled, and takes it back
                    return
                if error.errno == errno.ETOOMANYREFS:  # on their way for this user
                    await asyncio.sleep(_RETRY_SECONDS)
                elif error.errno in _CUT:
                    self._connect_again(error)
                else:
                    raise
            else:
                return

    def _connect_again(self, error: OSError) -> None:
        """Replace a socket that takes nothing any more; OSError if the keeper is gone.

        A message is sent whole or not at all, so that nothing is lost. Somebody else may have taken its address when it is
        gone: descriptors are for our parent alone.
        """
        if not self._is_alive():
            raise error
        log.warning("the connection to the keeper is made anew: %s", error)
        fresh = sdnotify.connect(self._address)
        self._sock.close()
        self._sock = fresh

    def _is_alive(self) -> bool:
        return os.getppid() == self._parent


async def _closed(fd: int) -> None:
    """Return when every other end of a pipe is closed."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _settle, done)
    try:
        await done
    finally:
        loop.remove_reader(fd)


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _settle, done)
    try:
        await done
    finally:
        loop.remove_writer(fd)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
