"""A kernel and a carrier in memory, which do what the real ones were seen to do (kernel.md).

What is preserved crosses at `FakeCarrier.cross`, as with the Live Update Orchestrator: bytes at the very end, so late writes
arrive; seals as they were when it was preserved; holes filled; mode 0777, owner the retriever's, name and O_APPEND
lost; read-only comes back as O_RDWR; an executable file with F_SEAL_EXEC gets all writing seals.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from fdbox.errors import CannotCarry, FdboxError, KernelError
from fdbox.handover import manifest
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, close_all, dup
from fdbox.model import Carriage
from fdbox.nextkernel.verdict import Problem, Verdict
from fdbox.ports import ParcelRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fdbox.linux.memfd import Seals
    from fdbox.ports import Carrier, Kernel, Parcel, Shipment

FIRST, SECOND, THIRD = "first-incarnation", "second-incarnation", "third-incarnation"
_MAX_NAME = 63


def _nothing() -> None:
    """Let nothing happen."""


@dataclass
class FakeKernel:
    """A kernel whose life, memory and failures the test sets; `calls` has what it was told to do."""

    running: str = FIRST
    free: int = 1 << 40
    #: nanoseconds that went by while nothing ran
    gap: int = 0
    #: method name -> what it raises
    failing: dict[str, Exception] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    #: called between saving and comparing
    on_sync: Callable[[], None] = _nothing
    #: called before the jump fails
    on_jump: Callable[[], None] = _nothing
    #: what is wrong with the next kernel
    problems: tuple[Problem, ...] = ()
    loaded: tuple[int, int | None, str] | None = None
    given_way: threading.Event = field(default_factory=threading.Event)

    def incarnation(self) -> str:
        return self.running

    def realtime(self) -> int:
        return time.time_ns() + self.gap

    def free_memory(self) -> int:
        return self.free

    def judge(self, kernel: int, command_line: str) -> Verdict:
        if "judge" in self.failing:
            raise self.failing["judge"]
        return Verdict(self.problems)

    def load(self, kernel: int, initrd: int | None, command_line: str) -> None:
        self._enter("load")
        self.loaded = (kernel, initrd, command_line)

    def unload(self) -> None:
        self._enter("unload")
        self.loaded = None

    def sync(self) -> None:
        self.on_sync()

    def jump(self) -> None:
        self._enter("jump")
        self.on_jump()
        raise KernelError("a test cannot jump")

    def reboot(self) -> None:
        self._enter("reboot")
        raise KernelError("a test cannot reboot")

    def give_way(self) -> None:
        self.given_way.set()

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]


@dataclass(slots=True)
class _Parcel:
    """What is preserved: a descriptor of its open file, and the seals it had; None of a device, which crosses as it is."""

    fd: OwnedFd
    seals: Seals | None

    def cross(self) -> OwnedFd:
        """Return what the next kernel makes of it."""
        if self.seals is None:
            return self.fd.dup()
        with self.fd as old:
            size = os.fstat(old.fileno()).st_size
            new = memfd.create("", size)
            with memfd.reopen(old.fileno(), os.O_RDONLY) as source:
                os.posix_fallocate(new.fileno(), 0, size) if size else None
                for start, length in memfd.data_extents(source.fileno()):
                    os.pwrite(new.fileno(), os.pread(source.fileno(), length, start), start)
            os.fchmod(new.fileno(), 0o777)
            os.lseek(new.fileno(), os.lseek(old.fileno(), 0, os.SEEK_CUR), os.SEEK_SET)
            if self.seals:
                memfd.add_seals(new.fileno(), self.seals)
        return new


class FakeShipment:
    """An outgoing session."""

    carrier = "kernel"

    def __init__(self, carrier: FakeCarrier, name: str) -> None:
        self.name = name
        self.parcels: dict[int, _Parcel] = {}
        self._carrier = carrier

    def add(self, parcels: Sequence[Parcel]) -> None:
        for number, (fd, token, extents) in enumerate(parcels):
            assert extents is None, "the kernel takes no streams"
            if number == self._carrier.refuse:
                raise ParcelRefused("the fake takes no more", token, errno=errno.ENOENT)
            self._preserve(fd, token)

    def is_unchanged(self, token: int) -> bool:
        raise ValueError(f"{token} is no stream")

    def discard(self) -> None:
        if self._carrier.outgoing.get(self.name) is self:
            del self._carrier.outgoing[self.name]
        self.release()

    def release(self) -> None:
        parcels, self.parcels = self.parcels, {}
        close_all(parcel.fd for parcel in parcels.values())

    def _preserve(self, fd: int, token: int) -> None:
        memory = memfd.accepts_seals(fd)
        if memory and (memfd.is_hugetlb(fd) or os.fstat(fd).st_nlink):
            raise ParcelRefused("it is of huge pages, or has a name", token, errno=errno.ENOENT)
        if not memory and not self._carrier.probed:
            raise ParcelRefused("only memory can go", token, errno=errno.ENOENT)
        if token in self.parcels:
            raise ParcelRefused("the token is taken", token, errno=errno.EEXIST)
        if os.fstat(fd).st_ino in self._carrier.preserved():
            raise ParcelRefused("it is preserved already", token, errno=errno.EBUSY)
        self.parcels[token] = _Parcel(dup(fd), memfd.get_seals(fd) if memory else None)


class FakeDelivery:
    """An incoming session."""

    def __init__(self, carrier: FakeCarrier, name: str, files: dict[int, OwnedFd]) -> None:
        self.name = name
        self.files = files
        self._carrier = carrier
        self._session = OwnedFd(os.eventfd(0))

    def fileno(self) -> int:
        return self._session.fileno()

    def take(self, token: int) -> OwnedFd:
        """Return a descriptor; the second time, of the same open file."""
        if token not in self.files:
            raise KernelError(f"nothing came under the token {token}", errno=errno.ENOENT)
        return self.files[token].dup()

    def stream(self, token: int) -> None:
        assert token in self.files

    def finish(self, *, whole: bool = True) -> None:
        self._carrier.finished.append(self.name)
        self.release()

    def abandon(self) -> None:
        """The session is not finished, and keeps its memory."""

    def release(self) -> None:
        files, self.files = self.files, {}
        close_all([*files.values(), self._session])


@dataclass
class FakeCarrier:
    """What lies between two incarnations."""

    name: str = "kernel"
    in_place: bool = True
    streams: bool = False
    #: None: it works
    obstacle: str | None = None
    #: the parcel of a shipment, from 0, that is refused
    refuse: int | None = None
    #: shipments begun before the one that fails, from 0
    refuse_ship: int | None = None
    #: session name -> what receiving it raises
    refuse_receive: dict[str, FdboxError] = field(default_factory=dict)
    #: kind -> what probing it says; with any, devices are preserved as a later kernel might
    probed: dict[str, Carriage] = field(default_factory=dict)
    #: called when a shipment is begun: what is in it has been saved
    on_ship: Callable[[], None] = _nothing
    outgoing: dict[str, FakeShipment] = field(default_factory=dict)
    incoming: dict[str, FakeDelivery] = field(default_factory=dict)
    received: list[FakeDelivery] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    begun: int = 0

    def close(self) -> None:
        """Nothing hangs on this process."""

    def switch_off(self) -> None:
        """Switch the machine off."""
        for shipment in self.outgoing.values():
            shipment.release()
        for delivery in [*self.incoming.values(), *self.received]:
            delivery.release()

    def now(self) -> Self:
        return self

    def by_image(self) -> Self:
        raise CannotCarry("the fake has no images")

    def carriage(self) -> Carriage:
        if self.obstacle is None:
            return Carriage(self.name)
        return Carriage(None, self.obstacle, "use another")

    def probe(self, fd: int, kind: str) -> Carriage:
        return self.probed.get(kind, Carriage(None, "the fake does not take it", "use another"))

    def ship(self, name: str, replacing: Shipment | None = None) -> FakeShipment:
        if replacing is not None:
            replacing.discard()
        self.on_ship()
        number, self.begun = self.begun, self.begun + 1
        if number == self.refuse_ship:
            raise KernelError("the fake begins no shipment", errno=errno.EBUSY)
        if not 1 <= len(name.encode()) <= _MAX_NAME:
            raise KernelError(f"{name!r} has not 1 to {_MAX_NAME} bytes", errno=errno.EINVAL)
        if name in self.outgoing:
            raise KernelError(f"{name!r} is there already", errno=errno.EEXIST)
        self.outgoing[name] = FakeShipment(self, name)
        return self.outgoing[name]

    def claim(self, *, has_past: bool) -> None:
        """Nothing is left of a process that is no more."""

    def indexes(self) -> tuple[str, ...]:
        return (manifest.INDEX_SESSION,)

    def tidy(self) -> None:
        """What nobody retrieves is lost when the kernel ends."""

    def receive(self, name: str) -> FakeDelivery | None:
        if name in self.refuse_receive:
            raise self.refuse_receive[name]
        delivery = self.incoming.pop(name, None)
        if delivery is not None:
            self.received.append(delivery)
        return delivery

    def resume(self, name: str, fd: OwnedFd) -> FakeDelivery:
        fd.close()
        return next(delivery for delivery in self.received if delivery.name == name)

    def cross(self, kernel: FakeKernel) -> None:
        """Cross to the next incarnation: what is outgoing comes in, and what was not retrieved is lost."""
        kernel.running = SECOND if kernel.running == FIRST else THIRD
        for lost in [*self.incoming.values(), *self.received]:
            lost.release()
        self.received.clear()
        leaving, self.outgoing = self.outgoing, {}
        self.incoming = {
            name: FakeDelivery(
                self, name, {token: one.cross() for token, one in shipment.parcels.items()}
            )
            for name, shipment in leaving.items()
        }
        for shipment in leaving.values():
            shipment.release()

    def preserved(self) -> set[int]:
        """Return the inodes that are in some outgoing session."""
        return {
            os.fstat(parcel.fd.fileno()).st_ino
            for shipment in self.outgoing.values()
            for parcel in shipment.parcels.values()
        }


def fits_the_ports(carrier: FakeCarrier, kernel: FakeKernel) -> tuple[Carrier[OwnedFd], Kernel]:
    """Let mypy compare the fakes with the protocols that they stand for."""
    return carrier, kernel
