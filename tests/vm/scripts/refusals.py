#!/usr/bin/env python3
"""Every way in which /dev/liveupdate refuses, and the name that fdbox gives it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.linux import liveupdate, memfd
from fdbox.linux.fd import OwnedFd
from fdbox.linux.liveupdate import Device
from fdbox.ports import Parcel, ParcelRefused

if TYPE_CHECKING:
    from collections.abc import Callable

ErrorT = TypeVar("ErrorT", bound=Exception)


def refused(kind: type[ErrorT], ask: Callable[[], object], text: str = "") -> ErrorT:
    """Check that `ask` raises exactly this, with this in its sentence, and return it."""
    try:
        ask()
    except kind as error:
        print(f"{kind.__name__}: {error}")
        if type(error) is not kind or text not in str(error):
            raise SystemExit(f"it should be {kind.__name__} with {text!r}") from error
        return error
    raise SystemExit(f"nothing was refused, and it should be {kind.__name__}")


def check_sessions() -> None:
    """Ask for what no session has, twice for what it has, and in the wrong state."""
    with Device.open() as device, memfd.create("one", 4096) as one, memfd.create("two", 1) as two:
        refused(liveupdate.LiveUpdateBusy, Device.open, f"(pid {os.getpid()})")
        held = KernelCarrier().carriage()
        assert held.carrier is None
        assert f"(pid {os.getpid()})" in held.obstacle, held
        with device.create_session("näme") as session:
            assert session.name() == "näme".encode()
            refused(liveupdate.SessionExists, lambda: device.create_session("näme"))
            session.preserve(one.fileno(), 7)
            refused(liveupdate.FdAlreadyPreserved, lambda: session.preserve(one.fileno(), 8))
            refused(liveupdate.TokenInUse, lambda: session.preserve(two.fileno(), 7))
            refused(liveupdate.FdInvalid, lambda: session.preserve(987_654, 9))
            reading, writing = os.pipe()
            with OwnedFd(reading) as pipe, OwnedFd(writing):
                refused(liveupdate.FdNotSupported, lambda: session.preserve(pipe.fileno(), 9))
            refused(liveupdate.SessionWrongState, lambda: session.retrieve(7))
            refused(liveupdate.SessionWrongState, session.finish)
            refused(liveupdate.SessionUnknown, lambda: device.retrieve_session("none"))
        with device.create_session("näme") as again:
            again.preserve(one.fileno(), 7)  # closing the session let go of it


def check_carrier() -> None:
    """Let a child meet a refusal, and hear of it."""
    carrier = KernelCarrier()
    assert carrier.carriage().carrier == "kernel", carrier.carriage()
    assert carrier.receive("none") is None
    shipment = carrier.ship("box")
    with memfd.create("good", 4096) as good, memfd.create("twice", 4096) as twice:
        pairs = [(good.fileno(), 1), (twice.fileno(), 2), (twice.fileno(), (1 << 64) - 1)]
        parcels = [Parcel(fd, token) for fd, token in pairs]
        error = refused(ParcelRefused, lambda: shipment.add(parcels))
        assert error.token == (1 << 64) - 1, error.token
        shipment.discard()
        shipment = carrier.ship("box")
        shipment.add(parcels[:2])
        shipment.discard()


check_sessions()
check_carrier()
