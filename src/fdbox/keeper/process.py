"""The keeper's life: start the service, take what it stores, start it again when it dies, end when it ends by itself.

It reads nothing from clients and decides nothing. The service's end is told by its status:

    0                         it was told to stop: the keeper ends, and lets everything go
    another                   it cannot serve: the keeper ends if there is nothing that it holds
    killed, and all others    it is started again: at once, or later each time, if it was not even ready to serve

Signals are blocked and read, so that none is lost, whatever the keeper is about, also while it replaces itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdbox.keeper import protocol
from fdbox.keeper.store import Store, obey
from fdbox.linux import memfd, sdnotify, signalfd, spawn
from fdbox.linux.fd import OwnedFd, is_readable

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_STATE = "FDBOX_KEEPER_STATE"
_NO_SERVICE = -1
#: more than the kernel queues at a socket (net.unix.max_dgram_qlen)
_AT_ONCE = 1024


@dataclass(slots=True)
class State:
    """All that a keeper is: what it holds, where it hears of it, and for whom."""

    store: Store
    notify: socket.socket
    service: int = 0
    #: whether this service was ready to serve
    ready: bool = False


class Keeper:
    """Holds descriptors for one service."""

    def __init__(self, command: Sequence[str], state: State) -> None:
        """`command` starts the service, and the keeper itself when it is replaced."""
        self._command = command
        self._state = state
        self._stopping = False
        # Ignored, as whoever started us may have left it, it would take the service's status with it.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._signals = signalfd.block(_FORWARDED)

    def run(self) -> int:
        """Keep the service alive until it ends by itself; return its exit status."""
        state = self._state
        pause = 0.0
        while not self._told_to_end(pause):
            status = self._live()
            if (
                self._stopping
            ):  # it may have been killed by that, before it could do what it was told
                return max(0, status)
            if status == 0 or (status > 0 and not state.store.contents()):
                return status
            _say(f"the service ended with status {status}: starting it again")
            pause = 0.0 if state.ready else _next_pause(pause)
        return 0

    def close(self) -> None:
        """Let go of everything."""
        self._state.store.close()
        sdnotify.forget(self._state.notify)
        self._signals.close()

    def _told_to_end(self, pause: float) -> bool:
        """Return whether a signal came while there is no service, within `pause` seconds."""
        if self._state.service != 0 or not is_readable(self._signals.fileno(), pause):
            return False
        return any(number != signal.SIGHUP for number in signalfd.read(self._signals.fileno()))

    def _live(self) -> int:
        """Be with one service, from its start to its end; return how it ended."""
        state = self._state
        if state.service == 0:
            state.ready = False
            state.service = self._start()
        if state.service == _NO_SERVICE:
            state.service = 0
            return 127
        with OwnedFd(os.pidfd_open(state.service)) as process, select.epoll() as ready:
            watched = (process.fileno(), state.notify, state.store, self._signals)
            for one in watched:
                ready.register(one, select.EPOLLIN)
            while True:
                events = {number for number, _ in ready.poll()}
                self._take_messages()
                if state.store.fileno() in events:
                    state.store.drop_hung_up()
                if process.fileno() in events:
                    break
                for number in signalfd.read(self._signals.fileno()):
                    self._forward(process.fileno(), number)
        self._take_messages()  # what it said last
        _, status = os.waitpid(state.service, 0)
        state.service = 0
        return os.waitstatus_to_exitcode(status)

    def _forward(self, process: int, number: signal.Signals) -> None:
        if number != signal.SIGHUP:
            self._stopping = True
        elif (
            not self._state.ready
        ):  # it starts, with what is on disk now, and a hang-up would end it
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, number)

    def _start(self) -> int:
        held = self._state.store.contents()
        environment = {
            **os.environ,
            **sdnotify.inheritance([name for name, _ in held]),
            "NOTIFY_SOCKET": sdnotify.address(self._state.notify),
            "FDSTORE": str(protocol.MAX_DESCRIPTORS),
            protocol.VARIABLE: str(protocol.VERSION),
        }
        try:
            return spawn.start(self._command, environment, [fd.fileno() for _, fd in held])
        except OSError as error:
            _say(f"cannot start the service: {error}")
            return _NO_SERVICE

    def _take_messages(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                message = sdnotify.receive(self._state.notify)
            except BlockingIOError:
                return
            except OSError as error:
                _say(f"a message was lost: {error}")
                continue
            try:
                self._do(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, what is held is not let go for it
                _say(f"a message was not done: {error!r}")

    def _do(self, message: sdnotify.Message) -> None:
        if message.sender != self._state.service:
            message = message._replace(fields={})
        obey(message, self._state.store)
        if message.fields.get("READY") == "1":
            self._is_ready()
        if message.fields.get(protocol.REEXEC) == "1":
            _replace(self._command, self._state)

    def _is_ready(self) -> None:
        self._state.ready = True
        _tell_our_manager()


def _tell_our_manager() -> None:
    """Say READY=1 to a manager that started the keeper itself and keeps no descriptors: it only wants to know."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        with sdnotify.connect(address) as sock:
            sdnotify.send(sock, {"READY": "1"})
    except OSError as error:
        _say(f"cannot tell {address} that the service is ready: {error}")


def _next_pause(pause: float) -> float:
    return min(_LONGEST_PAUSE, pause * 2) or _FIRST_PAUSE


def _say(text: str) -> None:
    # Who reads it may be gone, or never have been.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"fdbox keeper: {text}\n")
        sys.stderr.flush()


# --- replacing the keeper itself -------------------------------------------------------------------------------------


def _replace(command: Sequence[str], state: State) -> None:
    """Become the code that is now on disk; come back only if that cannot be, and then all is as it was."""
    held = state.store.contents()
    told = {
        "version": protocol.VERSION,
        "held": [(name, fd.fileno()) for name, fd in held],
        "notify": state.notify.fileno(),
        "service": state.service,
        "ready": state.ready,
    }
    numbers = [state.notify.fileno(), *(fd.fileno() for _, fd in held)]
    with memfd.create("fdbox-keeper-state") as note:
        os.write(note.fileno(), json.dumps(told).encode())
        for number in (note.fileno(), *numbers):
            os.set_inheritable(number, True)  # noqa: FBT003 - takes no keyword
        try:
            os.execvpe(command[0], list(command), {**os.environ, _STATE: str(note.fileno())})  # noqa: S606 - no shell is wanted
        except OSError as error:
            _say(f"cannot be replaced, and goes on as it is: {error}")
        for number in numbers:
            os.set_inheritable(number, False)  # noqa: FBT003 - takes no keyword


def _taken_over(note: str) -> State:
    """Return what the keeper was before `_replace`."""
    with OwnedFd(int(note)) as stored:
        told = json.loads(os.pread(stored.fileno(), os.fstat(stored.fileno()).st_size, 0))
    store = Store(protocol.MAX_DESCRIPTORS)
    for name, number in told["held"]:
        try:
            os.set_inheritable(number, False)  # noqa: FBT003 - takes no keyword
            store.add(name, [OwnedFd(number)], poll=False)
        except Exception as error:  # noqa: BLE001 - one that makes trouble must not end the others' stay
            _say(f"cannot go on to hold {name}: {error!r}")
    notify = sdnotify.adopt(told["notify"])
    return State(store, notify, told["service"], ready=bool(told["ready"]))


def run(command: Sequence[str]) -> int:
    """Keep the service that `command` starts; return its exit status when it ends by itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    note = os.environ.pop(_STATE, None)
    if note is None:
        state = State(Store(protocol.MAX_DESCRIPTORS), sdnotify.listen_privately())
    else:
        state = _taken_over(note)
    keeper = Keeper(command, state)
    try:
        return keeper.run()
    finally:
        keeper.close()
