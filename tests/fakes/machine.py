"""A carrier and a kernel in memory, which keep the rules of the real ones (kernel.md) as far as fdbox relies on them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fdbox.errors import KernelError
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, close_all, dup
from fdbox.model import Carriage
from fdbox.ports import ParcelRefused

if TYPE_CHECKING:
    from collections.abc import Sequence


class FakeKernel:
    """A kernel whose jump makes a new incarnation."""

    def __init__(self) -> None:
        self.boot = "boot-1"
        self.free = 1 << 40
        self.calls: list[str] = []
        self.fail_at = ""

    def incarnation(self) -> str:
        return self.boot

    def free_memory(self) -> int:
        return self.free

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fail_at:
            raise KernelError(f"{name} was to fail")

    def load(self, kernel: int, initrd: int | None, command_line: str) -> None:
        self._call("load")

    def unload(self) -> None:
        self._call("unload")

    def jump(self) -> None:
        self._call("jump")
        raise KernelError("a test cannot jump")


class FakeShipment:
    def __init__(self, carrier: FakeCarrier, name: str) -> None:
        self.name = name
        self.parcels: dict[int, OwnedFd] = {}
        self.carrier = carrier

    def add(self, parcels: Sequence[tuple[int, int]]) -> None:
        for fd, token in parcels:
            if self.carrier.refuse_after == 0:
                raise ParcelRefused("the fake takes no more", token)
            self.carrier.refuse_after -= 1
            self.parcels[token] = dup(fd)

    def discard(self) -> None:
        self.carrier.outgoing.pop(self.name, None)
        close_all(self.parcels.values())
        self.parcels.clear()


class FakeDelivery:
    def __init__(self, shipment: FakeShipment) -> None:
        self.shipment = shipment
        self.finished = 0

    def take(self, token: int) -> OwnedFd:
        if token not in self.shipment.parcels:
            raise KernelError(f"there is no token {token}")
        # As the kernel gives it: readable and writable, with the position it had.
        original = self.shipment.parcels[token].fileno()
        fresh = memfd.reopen(original, os.O_RDWR)
        os.lseek(fresh.fileno(), os.lseek(original, 0, os.SEEK_CUR), os.SEEK_SET)
        return fresh

    def finish(self) -> None:
        self.finished += 1
        self.shipment.discard()


class FakeCarrier:
    """Carries what was shipped when `jump` is called."""

    name = "kernel"

    def __init__(self) -> None:
        self.outgoing: dict[str, FakeShipment] = {}
        self.incoming: dict[str, FakeDelivery] = {}
        self.refuse_after = -1
        self.has = Carriage("kernel")

    def carriage(self) -> Carriage:
        return self.has

    def ship(self, name: str) -> FakeShipment:
        if name in self.outgoing:
            raise KernelError(f"there is a session {name}")
        shipment = self.outgoing[name] = FakeShipment(self, name)
        return shipment

    def receive(self, name: str) -> FakeDelivery | None:
        return self.incoming.get(name)

    def jump(self, kernel: FakeKernel) -> None:
        """Arrive in the next incarnation."""
        kernel.boot += "+"
        self.incoming = {name: FakeDelivery(shipment) for name, shipment in self.outgoing.items()}
        self.outgoing = {}

    def close(self) -> None:
        for delivery in self.incoming.values():
            delivery.shipment.discard()
        for shipment in list(self.outgoing.values()):
            shipment.discard()
