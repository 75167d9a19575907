"""The kernel carrier: the Live Update Orchestrator, one session a box. The pages stay where they are.

Only one process may have /dev/liveupdate open, so it is opened for one request and closed again; a session stays with
its own descriptor. Preserving may drive the kernel out of memory, and then it kills whoever asked: a child asks.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import threading
import time
from typing import TYPE_CHECKING, Self

from fdbox.errors import CannotCarry, KernelError, NoRoom
from fdbox.handover.manifest import INDEX_SESSION
from fdbox.linux import liveupdate, memfd
from fdbox.linux.fd import OwnedFd
from fdbox.linux.liveupdate import Device, Session
from fdbox.model import Carriage
from fdbox.ports import ParcelRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdbox.ports import Clock, Parcel, Shipment

_OUTCOME = struct.Struct("=iq")  # errno (0: all preserved), token
_UNEXPECTED = -1
_ASK_AGAIN_SECONDS = 1.0


class KernelCarrier:
    """/dev/liveupdate of the running kernel."""

    name = "kernel"
    in_place = True
    streams = False

    def __init__(self, path: str = liveupdate.DEVICE, clock: Clock = time.monotonic) -> None:
        """Take the device's path; nothing is opened yet."""
        self._path = path
        self._clock = clock
        self._works = False
        self._fails_until = 0.0
        self._answer = Carriage(None)
        self._takes: dict[str, Carriage] = {}
        self._lock = threading.Lock()  # this process must not be in its own way

    def now(self) -> Self:
        """Return this one."""
        return self

    def by_image(self) -> Self:
        """Raise CannotCarry: there is none."""
        raise CannotCarry("there is no carrier but the kernel", remedy="leave the carrier out")

    def close(self) -> None:
        """Do nothing: the device is open only while it is asked."""

    def carriage(self) -> Carriage:
        """Return whether the running kernel carries memory: tried with a page of it, until it has worked once.

        A refusal (the device may be busy) holds for a second, for this is asked with every `put`.
        """
        if self._works or self._clock() < self._fails_until:
            return self._answer
        try:
            self._probe()
        except KernelError as error:
            self._answer = Carriage(None, error.message, error.remedy)
            self._fails_until = self._clock() + _ASK_AGAIN_SECONDS
        else:
            self._answer = Carriage(self.name)
            self._works = True
        return self._answer

    def probe(self, fd: int, kind: str) -> Carriage:
        """Return whether the running kernel takes a descriptor as it is: tried with it, until one of the kind was taken."""
        if kind in self._takes:
            return self._takes[kind]
        has = self.carriage()
        if has.carrier is None:
            return has
        try:
            self._try(fd)
        except liveupdate.FdNotSupported as error:
            return Carriage(None, f"the running kernel does not carry a {kind}", error.remedy)
        except KernelError as error:
            if error.errno != errno.EBUSY:  # what is preserved already can be preserved
                return Carriage(None, error.message, error.remedy)
        self._takes[kind] = has
        return has

    def ship(self, name: str, replacing: Shipment | None = None) -> _Shipment:
        """Begin a session; errors as `Device.open` and `Device.create_session`. No two can have one name."""
        if replacing is not None:
            replacing.discard()
        with self._lock, Device.open(self._path) as device:
            return _Shipment(name, device.create_session(name))

    def claim(self, *, has_past: bool) -> None:
        """Return None: what a process has preserved ends with it."""

    def indexes(self) -> tuple[str, ...]:
        """Return the one name that there is."""
        return (INDEX_SESSION,)

    def tidy(self) -> None:
        """Do nothing: what nobody retrieves ends with this kernel."""

    def receive(self, name: str) -> _Delivery | None:
        """Return the session of that name from the last kernel; None where it, or the whole device, is not there."""
        try:
            with self._lock, Device.open(self._path) as device:
                return _Delivery(device.retrieve_session(name))
        except (liveupdate.SessionUnknown, liveupdate.LiveUpdateUnsupported):
            return None

    def resume(self, name: str, fd: OwnedFd) -> _Delivery:  # noqa: ARG002 - a session knows its name
        """Return a session that another process has retrieved, from its descriptor."""
        return _Delivery(Session(fd))

    def _probe(self) -> None:
        with memfd.create("fdbox-probe", 1) as page:
            self._try(page.fileno())

    def _try(self, fd: int) -> None:
        shipment = self.ship(f"fdbox-probe-{secrets.token_hex(8)}")
        try:
            shipment.session.preserve(fd, 1)
        finally:
            shipment.discard()


class _Shipment:
    """An outgoing session."""

    carrier: str = "kernel"

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self.session = session

    def add(self, parcels: Sequence[Parcel]) -> None:
        """Preserve parcels, in a child.

        Raises:
            ParcelRefused: the kernel does not take one; what it took before stays until `discard`.
            NoRoom: the kernel ran out of memory and killed the child.
        """
        reading, writing = (OwnedFd(end) for end in os.pipe2(os.O_CLOEXEC))
        with reading:
            with writing:
                child = os.fork()
                if child == 0:
                    self._preserve_and_exit(parcels, writing.fileno())
            answer = os.read(reading.fileno(), _OUTCOME.size)
        _, status = os.waitpid(child, 0)
        if len(answer) != _OUTCOME.size:
            raise NoRoom(
                f"the kernel ended the process that handed it the memory (status {status})",
                remedy="see dmesg for its reason; mostly too little memory is free",
            )
        code, token = _OUTCOME.unpack(answer)
        if code:
            _raise_refusal(code, token)

    def is_unchanged(self, token: int) -> bool:
        """Never asked: the kernel takes no streams."""
        raise ValueError(f"{token} is no stream")

    def discard(self) -> None:
        """Close the session: the kernel lets go of everything."""
        self.session.close()

    def release(self) -> None:
        """Close the session, for nothing can outlive its holder."""
        self.discard()

    def _preserve_and_exit(self, parcels: Sequence[Parcel], answer: int) -> None:
        """Preserve everything and say how it went: no more than that, for other threads' locks may be held for ever."""
        code, token = _UNEXPECTED, 0
        try:
            _volunteer()
            pairs = [(parcel.fd, parcel.token) for parcel in parcels]
            for token in self.session.preserve_each(pairs):  # noqa: B007 - the last one is told
                pass
            code = 0
        except KernelError as error:
            code = error.errno or _UNEXPECTED
        finally:
            os.write(answer, _OUTCOME.pack(code, _signed(token)))
            os._exit(0)


def _volunteer() -> None:
    """Be the one whom the OOM killer takes, rather than the daemon."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, b"1000")
    except OSError:  # then it chooses by itself
        return


def _signed(token: int) -> int:
    return token - (1 << 64) if token >> 63 else token


def _raise_refusal(code: int, token: int) -> None:
    if code == _UNEXPECTED:
        raise ParcelRefused("preserving it failed in an unexpected way", token % (1 << 64))
    error = liveupdate.preserve_error(code)
    raise ParcelRefused(error.message, token % (1 << 64), errno=code, remedy=error.remedy)


class _Delivery:
    """A session from the last kernel."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def fileno(self) -> int:
        """Return the session's descriptor, borrowed."""
        return self._session.fileno()

    def take(self, token: int) -> OwnedFd:
        """Return what was preserved under `token`; errors as `Session.retrieve`."""
        return self._session.retrieve(token)

    def stream(self, token: int) -> None:
        """Return that it is to be taken: the kernel brings no streams."""

    def finish(self, *, whole: bool = True) -> None:  # noqa: ARG002 - the kernel keeps all or nothing
        """Let the kernel go, and close the session."""
        with self._session:
            self._session.finish()

    def abandon(self) -> None:
        """Do nothing: a session that is not finished keeps its memory as long as it is open."""
