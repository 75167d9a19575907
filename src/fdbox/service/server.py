"""Sockets and calls: the listener, its connections and the handlers that serve them, on one asyncio event loop.

    server = Server({"Status": status, "Put": put, "Subscribe": subscribe})
    await server.listen(default_socket())  # clients may come, and wait
    server.begin()
    ...
    await server.close()

A handler takes a `Call` and is a plain function (the fast way: no task), a coroutine function, or an async generator
function for methods that answer more than once. It raises an `FdboxError` to answer with that error.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
import stat
from collections import Counter
from typing import TYPE_CHECKING

from fdbox.errors import ConfigurationError, KernelError, UsageError
from fdbox.linux import peer as linux_peer
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.service.access import Peer
from fdbox.service.connection import Call, Connection, Handler, Reply
from fdbox.varlink.dispatch import Dispatcher, Info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Call", "Handler", "Reply", "Server"]

log: logging.Logger = logging.getLogger(__name__)

_BACKLOG = 4096  # clients wait here while the service is started again
_ACCEPT_AT_ONCE = 32
_ACCEPT_PAUSE_SECONDS = 1.0
_DISCARD_SECONDS = 0.01
_DISCARD_AT_ONCE = 512
_DRAIN_SECONDS = 30.0


class _Hangups:
    """Tells when a peer is gone whose socket has unread bytes: an epoll of its own that asks for EPOLLRDHUP only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._gone: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._fire)

    def watch(self, fd: int, gone: Callable[[], None]) -> None:
        self._epoll.register(fd, select.EPOLLRDHUP)
        self._gone[fd] = gone

    def forget(self, fd: int) -> None:
        if self._gone.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _fire(self) -> None:
        for fd, _ in self._epoll.poll(0):
            gone = self._gone.get(fd)
            self.forget(fd)
            if gone is not None:
                gone()

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()


class Server:
    """Serves io.fdbox on any number of listening sockets. Make it inside a running event loop."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        version: str = "0",
        stall_seconds: float = 10.0,
        connections_per_user: int = 256,
    ) -> None:
        """Serve `handlers`, by the method's name without its interface.

        Args:
            handlers: who serves what; a method of the interface that is missing here is answered as not implemented.
            version: what GetInfo shows.
            stall_seconds: how long half a message may pin descriptors, be it read or written.
            connections_per_user: a connection over this is closed as soon as it is made.
        """
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.handlers = handlers
        self.dispatcher: Dispatcher = Dispatcher(handlers.keys(), info=Info(version=version))
        self.stall_seconds = stall_seconds
        self._limit = connections_per_user
        self._hangups = _Hangups(self.loop)
        self._listeners: list[socket.socket] = []
        self._paths: list[tuple[Path, int]] = []
        self._connections: set[Connection] = set()
        self._by_user: Counter[int] = Counter()
        self._nobody = asyncio.Event()
        self._doomed: list[OwnedFd] = []
        self._closing: asyncio.Future[None] | None = None
        self._discard_timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def listen(self, path: Path, mode: int = 0o666, inherited: OwnedFd | None = None) -> bool:
        """Listen at `path`; whoever may connect is decided by its mode, what they may do by their uid. They wait for `begin`.

        A socket that was `inherited` listens there already, and clients may be waiting: True if it still does.

        Raises:
            UsageError: a daemon answers there already.
            ConfigurationError: no socket can be made there.
        """
        if inherited is not None:
            with inherited:
                if path.is_socket():  # noqa: ASYNC240 - a stat of what we have made
                    self._paths.append((path, path.stat().st_ino))  # noqa: ASYNC240 - as above
                    self._listeners.append(socket.socket(fileno=inherited.detach()))
                    self.listener.setblocking(False)  # noqa: FBT003 - takes no keyword
                    return True
            log.warning("somebody removed %s: listening there anew", path)
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            sock = await asyncio.to_thread(_bind, path, mode)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen at {path}: {error.strerror or error}",
                remedy="set FDBOX_SOCKET to a path in a directory that you may write to",
            ) from error
        self._paths.append((path, path.stat().st_ino))  # noqa: ASYNC240 - a stat of what was just made
        self._listeners.append(sock)
        return False

    def begin(self) -> None:
        """Serve who comes."""
        for sock in self._listeners:
            self.loop.add_reader(sock.fileno(), self._accept, sock)

    def serve_connection(self, sock: socket.socket) -> None:
        """Serve one connected socket, and own it."""
        sock.setblocking(False)  # noqa: FBT003 - takes no keyword
        credentials = linux_peer.credentials(sock)
        peer = Peer(uid=credentials.uid, gid=credentials.gid, pid=credentials.pid)
        if self._by_user[peer.uid] >= self._limit:
            log.warning("user %d has %d connections: one more is refused", peer.uid, self._limit)
            sock.close()
            return
        self._by_user[peer.uid] += 1
        self._connections.add(Connection(sock, peer, self))

    @property
    def listener(self) -> socket.socket:
        """The socket that `listen` made or took over."""
        return self._listeners[0]

    async def close(self, *, again: bool = False) -> None:
        """Stop listening, end every connection, and return when no handler runs and nothing is left to close.

        `again`: another process goes on with the listening socket, so that its path stays; calls that were read are
        answered, and clients see by the connection's end that others were not.
        """
        for sock in self._listeners:
            self.loop.remove_reader(sock.fileno())
            sock.close()
        self._listeners.clear()
        if again:
            await self._drain()
        else:
            self._unlink()
        tasks = [connection.task for connection in self._connections if connection.task]
        for connection in list(self._connections):
            connection.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close_doomed()
        while (
            self._closing is not None and not again
        ):  # it may take long, and the process ends anyway
            await asyncio.wait([self._closing])
            await asyncio.sleep(0)  # its callback runs in the next round
            self._close_doomed()
        self._hangups.close()

    async def _drain(self) -> None:
        """Answer every call that was read, and read no more."""
        for connection in list(self._connections):
            connection.finish()
        if self._connections:
            self._nobody.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nobody.wait(), _DRAIN_SECONDS)

    def _unlink(self) -> None:
        for path, inode in self._paths:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()
        self._paths.clear()

    # --- for connections ---------------------------------------------------------------------------------------------

    def discard(self, descriptors: Sequence[OwnedFd | None]) -> None:
        """Close descriptors off the event loop, for closing what somebody else opened can block.

        They are collected for some milliseconds, because waking a thread costs more than closing.
        """
        self._doomed.extend([fd for fd in descriptors if fd is not None])
        if not self._doomed or self._closing is not None:
            return
        if len(self._doomed) >= _DISCARD_AT_ONCE:
            self._close_doomed()
        elif self._discard_timer is None:
            self._discard_timer = self.loop.call_later(_DISCARD_SECONDS, self._close_doomed)

    def _close_doomed(self) -> None:
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None
        if self._doomed and self._closing is None:
            batch, self._doomed = self._doomed, []
            self._closing = self.loop.run_in_executor(None, close_all, batch)
            self._closing.add_done_callback(self._discarded)

    def _discarded(self, done: asyncio.Future[None]) -> None:
        self._closing = None
        if not done.cancelled() and (error := done.exception()):
            log.error("closing descriptors", exc_info=error)
        self.discard(())

    def watch_hangup(self, fd: int, gone: Callable[[], None]) -> None:
        """Call `gone` once when the peer of this socket is gone."""
        self._hangups.watch(fd, gone)

    def forget_hangup(self, fd: int) -> None:
        """Stop watching, if it was watched."""
        self._hangups.forget(fd)

    def closed(self, connection: Connection) -> None:
        """Take note that this connection is no more."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._by_user[connection.peer.uid] -= 1
        if not self._connections:
            self._nobody.set()

    # --- listening ---------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._cannot_accept(listener, error)
                return
            try:
                self.serve_connection(sock)
            except (OSError, KernelError) as error:
                log.info("a connection was gone before it was served: %s", error)
                sock.close()

    def _cannot_accept(self, listener: socket.socket, error: OSError) -> None:
        if error.errno in (errno.ECONNABORTED, errno.EINTR):
            return
        log.error("cannot accept a connection, trying again in a second: %s", error)
        self.loop.remove_reader(listener.fileno())
        self.loop.call_later(_ACCEPT_PAUSE_SECONDS, self._accept_again, listener)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self.loop.add_reader(listener.fileno(), self._accept, listener)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one starting daemon at a time look at `path`, so that two do not both take over a stale socket."""
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _bind(path: Path, mode: int) -> socket.socket:
    """Return a socket that listens at `path`. It gets its mode under another name, so it never has a wrong one."""
    fresh = path.with_name(path.name + "~")
    with _alone(path):
        _refuse_if_alive(path)
        fresh.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind(os.fspath(fresh))
            fresh.chmod(mode)
            sock.listen(_BACKLOG)
            fresh.rename(path)
        except BaseException:
            sock.close()
            fresh.unlink(missing_ok=True)
            raise
    return sock


def _refuse_if_alive(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is something that is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return  # nobody listens: left over from a daemon that was killed
        except BlockingIOError:
            pass  # its backlog is full, so it is there
    raise UsageError(
        f"another daemon answers at {path}", remedy="use that one, stop it, or set FDBOX_SOCKET"
    )
