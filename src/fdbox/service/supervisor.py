"""`fdbox run`: one program, started again when it fails, with a file descriptor store as systemd's.

    start it -> do what it says -> its main process ends -> end what is left of its process group -> a pause -> start it

What it stored is given to it at each start. Signals are passed on to its main process; SIGTERM, SIGINT and SIGQUIT also
mean that it is not started again. As process 1 of a container, and everywhere else, it reaps every orphan below it.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Protocol

from fdbox.keeper.store import Shelf, Store, obey
from fdbox.linux import sdnotify, signalfd, spawn
from fdbox.linux.fd import OwnedFd, is_readable
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
_CANNOT_RUN, _NOT_THERE = 126, 127  # and that there was none
#: seconds after which the store may do what it could not do
_AGAIN = 1.0
_LONGEST_POLL = 3600.0  # poll(2) takes milliseconds in an int
#: more than the kernel queues at a socket (net.unix.max_dgram_qlen), so that a flood does not keep us from the rest
_AT_ONCE = 1024
#: LISTEN_FDNAMES is one string for execve(2): MAX_ARG_STRLEN
_NAMES_ROOM = 32 * 4096 - len("LISTEN_FDNAMES=") - 1
#: of the environment that we were started with, not for the program: these were meant for us
_OURS = (
    "NOTIFY_SOCKET",
    "FDSTORE",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
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

    def catch_up(self) -> bool:
        """Do what could not be done before; return whether something is left."""

    def contents(self) -> list[tuple[str, OwnedFd]]:
        """Return (name, descriptor), borrowed."""


class OwnStore(Store):
    """A store that ends with this process."""

    def catch_up(self) -> bool:
        """Return False: nothing is ever left."""
        return False


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
        self._file_limit = spawn.raise_file_limit()
        self._notify = sdnotify.listen()
        # Ignored, as whoever started us may have left it, it would take the exit statuses with it.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._signals = signalfd.block((*_PASSED_ON, signal.SIGCHLD))
        self._manager = _manager()
        self._program = Program()
        self._main: int | None = None
        self._process: OwnedFd | None = None
        self._group: int | None = None
        self._status = 0
        self._stopping = self._hung = False
        self._kill_at = self._again_at = math.inf
        spawn.adopt_orphans()

    def run(self) -> int:
        """Return the exit status that the program had last; 128 and the signal's number if one ended it.

        OSError: it cannot be started at all.
        """
        pause = 0.0
        self._start()
        while True:
            began = self._clock()
            self._live()
            self._end_group()
            if self._stopping or not self._is_to_be_restarted():
                return self._exit_status()
            pause = _FIRST_PAUSE if self._clock() - began >= _HEALTHY else _next_pause(pause)
            log.warning("%s: started again in %.1f s", self._how_it_ended(), pause)
            if self._wait(pause, lambda: self._stopping):
                return self._exit_status()
            self._start_again()

    def close(self) -> None:
        """Let go of the sockets, not of the store."""
        self._forget_process()
        self._notify.close()
        self._signals.close()
        if self._manager is not None:
            self._manager.close()

    # --- one life ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        held = _tellable(self._store.contents())
        names = [name for name, _ in held]
        environment = {
            **{key: value for key, value in os.environ.items() if key not in _OURS},
            **sdnotify.inheritance(names),
            "NOTIFY_SOCKET": sdnotify.address(self._notify),
            "FDSTORE": str(self._max_fds),
        }
        # As many of its own as before on top of these: with less it could not even load its libraries.
        soft, hard = self._file_limit
        self._program = Program()
        self._hung = False
        self._status = 0
        pid = spawn.start(
            self._command,
            environment,
            [fd.fileno() for _, fd in held],
            supervised=True,
            file_limit=(min(soft + len(held), hard), hard),
        )
        self._watch(pid)

    def _start_again(self) -> None:
        """Start it, or have it fail: what worked before may work again, when its upgrade is through, say."""
        try:
            self._start()
        except OSError as error:
            log.error("%s cannot be started: %s", self._command[0], error)  # noqa: TRY400 - the sentence says it all
            self._status = _NOT_THERE if isinstance(error, FileNotFoundError) else _CANNOT_RUN

    def _watch(self, pid: int) -> None:
        """Have `pid` be the main process; ProcessLookupError."""
        group, process = os.getpgid(pid), OwnedFd(os.pidfd_open(pid))
        self._forget_process()
        self._main, self._process, self._group = pid, process, group
        self._status = 0

    def _forget_process(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _live(self) -> None:
        """Do what it says, until it has ended, and end it when it hangs."""
        while not self._has_ended():
            self._turn(self._deadline())
            if self._clock() >= self._deadline():
                self._abort("it has not been heard of in time")

    def _has_ended(self) -> bool:
        if self._process is not None and is_readable(self._process.fileno()):
            self._take_messages()  # the last ones may name another main process
        return self._process is None or is_readable(self._process.fileno())

    def _end_group(self) -> None:
        """End what the main process has left behind, so that the next one does not find its ports and files taken."""
        self._reap()
        self._forget_process()
        self._main = None
        group, self._group = self._group, None
        if group is None or group == os.getpgrp():
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)
            if self._wait(_GRACE, lambda: _is_empty(group)):
                return

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float, done: Callable[[], bool]) -> bool:
        """Return whether it was done within so many seconds."""
        end = self._clock() + seconds
        while not done():
            if self._clock() >= end:
                return False
            self._turn(end)
        return True

    def _turn(self, deadline: float) -> None:
        """Wait until something happens, and do what that asks for."""
        watched = [self._signals.fileno(), self._notify.fileno(), self._store.fileno()]
        if self._process is not None:
            watched.append(self._process.fileno())
        poller = select.poll()
        for number in watched:
            poller.register(number, select.POLLIN)
        left = min(deadline, self._again_at) - self._clock()
        poller.poll(min(max(0.0, left), _LONGEST_POLL) * 1000)
        self._take_messages()
        if self._store.drop_hung_up():
            self._note_change()
        if self._clock() >= self._again_at:
            self._again_at = self._clock() + _AGAIN if self._store.catch_up() else math.inf
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
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                self._take_messages()  # while it can still be seen that who has sent them is ours
                pid, status = os.waitpid(ended.si_pid, 0)
                if pid == self._main:
                    self._status = os.waitstatus_to_exitcode(status)

    # --- what it says ------------------------------------------------------------------------------------------------

    def _take_messages(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                message = sdnotify.receive(self._notify)
            except BlockingIOError:
                return
            if not self._is_ours(message.sender):
                log.warning("process %d is none of the program's: not heard", message.sender)
                obey(message._replace(fields={}), self._store)  # closes what came with it
                continue
            before = self._program.phase, self._program.status
            wish = self._program.hear(message.fields, self._clock())
            if before != (self._program.phase, self._program.status):
                log.info("%s %s", self._program.phase.value, self._program.status)
            self._pass_on(message.fields)
            obey(message, self._store)
            self._note_change()
            self._grant(wish)

    def _is_ours(self, pid: int) -> bool:
        return pid == self._main or spawn.descends_from(pid, os.getpid())

    def _note_change(self) -> None:
        self._again_at = min(self._again_at, self._clock() + _AGAIN)

    def _grant(self, wish: Wish) -> None:
        if wish.abort and not self._hung:
            self._abort("it asked for it (WATCHDOG=trigger)")
        pid = wish.main_pid
        if pid is None or pid == self._main or self._process is None:
            return
        if pid == os.getpid() or not self._is_ours(pid):
            log.warning("MAINPID=%d is none of the program's processes", pid)
            return
        try:
            self._watch(pid)
        except ProcessLookupError:
            log.warning("MAINPID=%d is no more", pid)

    def _pass_on(self, fields: dict[str, str]) -> None:
        told = {key: fields[key] for key in PASSED_ON if key in fields}
        if not self._stopping:  # it stops, we do not: who is told of it would end us in a while
            told.pop("STOPPING", None)
        if self._manager is None or not told:
            return
        try:
            sdnotify.send(self._manager, told)
        except OSError as error:
            log.warning("our own manager cannot be told: %s", error)

    # --- how it ends -------------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        if self._hung:
            return self._kill_at
        return math.inf if self._program.deadline is None else self._program.deadline

    def _abort(self, why: str) -> None:
        """End the program with SIGABRT, and with SIGKILL when it does not end by that."""
        if self._process is None:
            return
        number = signal.SIGKILL if self._hung else signal.SIGABRT
        log.error("the program is ended with %s: %s", number.name, why)
        self._hung = True
        self._kill_at = self._clock() + _GRACE
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process.fileno(), number)

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


def _tellable(held: list[tuple[str, OwnedFd]]) -> list[tuple[str, OwnedFd]]:
    """Return as many as LISTEN_FDNAMES can name."""
    room = _NAMES_ROOM
    for at, (name, _) in enumerate(held):
        room -= len(name.encode()) + 1
        if room < 0:
            log.error(
                "%d descriptors are held, but not given: their names are too long", len(held) - at
            )
            return held[:at]
    return held


def _is_empty(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):  # nobody is left, or nobody whom we could end
        return True
    return False


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
