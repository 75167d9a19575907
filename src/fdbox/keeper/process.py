"""The keeper's life: start the service, take what it stores, start it again when it dies, end when it ends by itself.

It reads nothing from clients and decides nothing. The service's end is told by its status:

    0                         it was told to stop: the keeper ends, and lets everything go
    RESTART                   it wants to be replaced by the code now on disk: at once
    killed, or another status it is started again: at once, or later each time, if it was not even ready to serve;
                              the keeper ends if the first one was not
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import time
from typing import TYPE_CHECKING

from fdbox.keeper.store import Store
from fdbox.linux import sdnotify
from fdbox.linux.fd import OwnedFd, close_all

if TYPE_CHECKING:
    from collections.abc import Sequence

#: exit status of a service that wants to be started anew (EX_TEMPFAIL of sysexits.h)
RESTART = 75
#: names travel in one environment variable of at most 128 KiB, here and under systemd
MAX_DESCRIPTORS = 20_000
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


class Keeper:
    """Holds descriptors for one service."""

    def __init__(self, command: Sequence[str]) -> None:
        """`command` starts the service."""
        self._command = command
        self._notify = sdnotify.listen()
        self._store = Store(MAX_DESCRIPTORS)
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)  # noqa: FBT003 - takes no keyword
        wake.setblocking(False)  # noqa: FBT003 - takes no keyword
        self._waker = wake
        self._service = 0
        self._ready = False

    def run(self) -> int:
        """Keep the service alive until it ends by itself; return its exit status."""
        _raise_limit()
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in _FORWARDED:
            signal.signal(number, self._forward)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        pause, ever_ready = 0.0, False
        try:
            while True:
                time.sleep(pause)  # noqa: TID251 - nothing else is to be done: there is no service
                self._ready = False
                status = self._live()
                ever_ready |= self._ready
                if status == 0 or not ever_ready:
                    return status
                _say(f"the service ended with status {status}: starting it again")
                pause = 0.0 if self._ready else _next_pause(pause)
        finally:
            self._store.close()

    def _live(self) -> int:
        """Start the service and do what it asks until it is no more; return how it ended."""
        self._service = self._start()
        process = os.pidfd_open(self._service)
        with OwnedFd(process), select.epoll() as ready:
            for fd in (process, self._notify.fileno(), self._wake.fileno()):
                ready.register(fd, select.EPOLLIN)
            while True:
                events = {fd for fd, _ in ready.poll()}
                if self._wake.fileno() in events:
                    self._wake.recv(4096)  # the handlers have run
                self._take_messages()
                if process in events:
                    break
        self._take_messages()  # what it said last
        _, status = os.waitpid(self._service, 0)
        self._service = 0
        return os.waitstatus_to_exitcode(status)

    def _take_messages(self) -> None:
        while True:
            try:
                message = sdnotify.receive(self._notify)
            except BlockingIOError:
                return
            except OSError as error:
                _say(f"a message was lost: {error}")
                continue
            if message.sender != self._service:
                close_all(message.descriptors)
                continue
            self._ready |= message.fields.get("READY") == "1"
            self._store.take(message)

    def _start(self) -> int:
        held = self._store.contents()
        environment = {
            **os.environ,
            **sdnotify.inheritance([name for name, _ in held]),
            "NOTIFY_SOCKET": sdnotify.address(self._notify),
            "FDSTORE": str(MAX_DESCRIPTORS),
        }
        numbers = [fd.fileno() for _, fd in held]
        child = os.fork()
        if child == 0:
            _become(self._command, environment, numbers)
        return child

    def _forward(self, number: int, _frame: object) -> None:
        if self._service:
            os.kill(self._service, number)
        elif number != signal.SIGHUP:
            raise SystemExit(0)


def _become(command: Sequence[str], environment: dict[str, str], numbers: Sequence[int]) -> None:
    """Turn this child into the service, with the descriptors from 3 on; never returns."""
    try:
        above = sdnotify.FIRST + len(numbers)
        # First out of the way: a number from 3 on may be one of those that are still to be moved.
        moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, above) for number in numbers]
        for index, number in enumerate(moved):
            os.dup2(number, sdnotify.FIRST + index)
        for number in (*_FORWARDED, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(command[0], list(command), {**environment, "LISTEN_PID": str(os.getpid())})  # noqa: S606 - no shell is wanted
    except BaseException as error:  # noqa: BLE001 - a child of a fork must not return
        _say(f"cannot start the service: {error}")
    finally:
        os._exit(127)


def _next_pause(pause: float) -> float:
    return min(_LONGEST_PAUSE, pause * 2) or _FIRST_PAUSE


def _raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(text: str) -> None:
    pass


def run(command: Sequence[str]) -> int:
    """Keep the service that `command` starts; return its exit status when it ends by itself."""
    return Keeper(command).run()
