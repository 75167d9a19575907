"""`fdbox run`: one program, started again when it fails, with a file descriptor store as systemd's.

    start it -> do what it says -> its main process ends -> end what is left of its process group -> a pause -> start it

What it stored is given to it at each start. Signals are passed on to its main process; SIGTERM, SIGINT and SIGQUIT also
mean that it is not started again. As process 1 of a container, and everywhere else, it reaps every orphan below it.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Protocol

from fdbox.keeper.store import Shelf, obey
from fdbox.linux import sdnotify, signalfd, spawn
from fdbox.linux.fd import OwnedFd, close_all, is_readable
from fdbox.service.notify import PASSED_ON, Program, Wish

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from fdbox.ports import Clock

log: logging.Logger = logging.getLogger(__name__)

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (
    *_STOP,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
)
#: how a program may end without having failed, as systemd's Restart=on-failure has it
_CLEAN = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
#: seconds: the pauses double while it does not even live that long
_FIRST_PAUSE, _LONGEST_PAUSE, _HEALTHY = 0.1, 10.0, 1.0
#: seconds that the rest of a process group has between SIGTERM and SIGKILL
_GRACE = 5.0
_SIGNALLED = 128  # how shells tell the signal that ended a program
#: of the environment that we were started with, not for the program: these were meant for us
_OURS = (
    "NOTIFY_SOCKET",
    "FDSTORE",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)


class Restart(enum.Enum):
    """When a program is started again that has ended by itself."""

    ON_FAILURE = "on-failure"
    ALWAYS = "always"
    NO = "no"


class Holder(Shelf, Protocol):
    """A store that can be asked what it has."""

    def fileno(self) -> int:
        """Return what is readable when `drop_hung_up` has something to do."""

    def drop_hung_up(self) -> list[tuple[str, OwnedFd]]:
        """Let go of what has hung up."""

    def contents(self) -> list[tuple[str, OwnedFd]]:
        """Return (name, descriptor), borrowed."""


class Supervisor:
    """Runs one program. For a process that does nothing else, and has one thread."""

    def __init__(
        self,
        command: Sequence[str],
        store: Holder,
        restart: Restart,
        max_fds: int,
        clock: Clock = time.monotonic,
    ) -> None:
        """`max_fds` is what the program is told that the store takes."""
        self._command = command
        self._store = store
        self._restart = restart
        self._max_fds = max_fds
        self._clock = clock
        self._notify = sdnotify.listen()
        self._signals = signalfd.block((*_PASSED_ON, signal.SIGCHLD))
        self._manager = _manager()
        self._program = Program()
        self._main = 0
        self._process: OwnedFd | None = None
        self._group = 0
        self._status = 0
        self._stopping = self._hung = False
        spawn.adopt_orphans()

    def run(self) -> int:
        """Return the exit status that the program had last; 128 and the signal's number if one ended it.

        OSError: it cannot be started at all.
        """
        pause = 0.0
        while True:
            began = self._clock()
            self._start()
            self._until(self._has_ended)
            self._end_group()
            if self._stopping or not self._is_to_be_restarted():
                return self._exit_status()
            pause = _FIRST_PAUSE if self._clock() - began >= _HEALTHY else _next_pause(pause)
            log.warning("%s: started again in %.1f s", self._how_it_ended(), pause)
            if self._wait(pause, lambda: self._stopping):
                return self._exit_status()

    def close(self) -> None:
        """Let go of the sockets, not of the store."""
        self._forget_process()
        self._notify.close()
        self._signals.close()
        if self._manager is not None:
            self._manager.close()

    # --- one life ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        held = self._store.contents()
        names = [name for name, _ in held]
        environment = {
            **{key: value for key, value in os.environ.items() if key not in _OURS},
            **sdnotify.inheritance(names),
            "NOTIFY_SOCKET": sdnotify.address(self._notify),
            "FDSTORE": str(self._max_fds),
        }
        self._program = Program()
        self._hung = False
        self._status = 0
        pid = spawn.start(
            self._command, environment, [fd.fileno() for _, fd in held], own_group=True
        )
        self._watch(pid)

    def _watch(self, pid: int) -> None:
        """Have `pid` be the main process."""
        process = OwnedFd(os.pidfd_open(pid))
        self._forget_process()
        self._main, self._process = pid, process
        self._group = os.getpgid(pid)

    def _forget_process(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _has_ended(self) -> bool:
        assert self._process is not None
        return is_readable(self._process.fileno())

    def _end_group(self) -> None:
        """End what the main process has left behind, so that the next one does not find its ports and files taken."""
        self._take_messages()  # what it said last
        self._reap()
        self._forget_process()
        self._main = 0
        if self._group == os.getpgrp():
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, number)
            if self._wait(_GRACE, self._is_group_empty):
                return

    def _is_group_empty(self) -> bool:
        try:
            os.killpg(self._group, 0)
        except (ProcessLookupError, PermissionError):  # nobody is left, or nobody whom we could end
            return True
        return False

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._turn(self._program.deadline)
            if self._main and self._is_overdue():
                self._abort("it has not been heard of in time")

    def _wait(self, seconds: float, done: Callable[[], bool]) -> bool:
        """Return whether it was done within so many seconds."""
        end = self._clock() + seconds
        while not done():
            if self._clock() >= end:
                return False
            self._turn(end)
        return True

    def _turn(self, deadline: float | None) -> None:
        """Wait until something happens, and do what that asks for."""
        watched = [self._signals.fileno(), self._notify.fileno(), self._store.fileno()]
        if self._process is not None:
            watched.append(self._process.fileno())
        poller = select.poll()
        for number in watched:
            poller.register(number, select.POLLIN)
        left = None if deadline is None else max(0.0, deadline - self._clock()) * 1000
        poller.poll(left)
        self._take_messages()  # before anybody is reaped who has sent one
        self._store.drop_hung_up()
        for number in signalfd.read(self._signals.fileno()):
            self._take_signal(number)

    def _take_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            self._reap()
            return
        self._stopping |= number in _STOP
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process.fileno(), number)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._main:
                    self._status = os.waitstatus_to_exitcode(status)

    # --- what it says ------------------------------------------------------------------------------------------------

    def _take_messages(self) -> None:
        while True:
            try:
                message = sdnotify.receive(self._notify)
            except BlockingIOError:
                return
            if not self._is_ours(message.sender):
                log.warning("process %d is none of the program's: not heard", message.sender)
                close_all(message.descriptors)
                continue
            wish = self._program.hear(message.fields, self._clock())
            self._pass_on(message.fields)
            obey(message, self._store)
            self._grant(wish)

    def _is_ours(self, pid: int) -> bool:
        return pid == self._main or spawn.descends_from(pid, os.getpid())

    def _grant(self, wish: Wish) -> None:
        if wish.abort:
            self._abort("it asked for it (WATCHDOG=trigger)")
        pid = wish.main_pid
        if pid is None or pid == self._main:
            return
        if not self._is_ours(pid):
            log.warning("MAINPID=%d is none of the program's processes", pid)
            return
        try:
            self._watch(pid)
        except ProcessLookupError:
            log.warning("MAINPID=%d is no more", pid)

    def _pass_on(self, fields: dict[str, str]) -> None:
        told = {key: fields[key] for key in PASSED_ON if key in fields}
        if self._manager is None or not told:
            return
        try:
            sdnotify.send(self._manager, told)
        except OSError as error:
            log.warning("our own manager cannot be told: %s", error)

    # --- how it ends -------------------------------------------------------------------------------------------------

    def _is_overdue(self) -> bool:
        deadline = self._program.deadline
        return deadline is not None and self._clock() >= deadline

    def _abort(self, why: str) -> None:
        if self._hung or self._process is None:
            return
        log.error("the program is ended with SIGABRT: %s", why)
        self._hung = True
        self._program.watchdog = None
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process.fileno(), signal.SIGABRT)

    def _is_to_be_restarted(self) -> bool:
        if self._restart is Restart.ON_FAILURE:
            return self._hung or not (self._status == 0 or -self._status in _CLEAN)
        return self._restart is Restart.ALWAYS

    def _exit_status(self) -> int:
        return self._status if self._status >= 0 else _SIGNALLED - self._status

    def _how_it_ended(self) -> str:
        if self._status < 0:
            return f"{self._command[0]} was ended by {signal.Signals(-self._status).name}"
        return f"{self._command[0]} ended with status {self._status}"


def _next_pause(pause: float) -> float:
    return min(_LONGEST_PAUSE, pause * 2) or _FIRST_PAUSE


def _manager() -> socket.socket | None:
    """Return a socket to who has started us, if that is somebody who wants to hear how it goes."""
    address = os.environ.get("NOTIFY_SOCKET")
    try:
        return sdnotify.connect(address) if address else None
    except OSError as error:
        log.warning("%s cannot be told anything: %s", address, error)
        return None
