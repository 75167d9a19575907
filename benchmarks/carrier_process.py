"""fdbox's side of handover.py: the same as ioctls.c, by the kernel carrier."""

from __future__ import annotations

import mmap
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING

from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.linux import memfd
from fdbox.ports import Parcel

if TYPE_CHECKING:
    from fdbox.linux.fd import OwnedFd

TIMES = 4


def filled(size: int) -> OwnedFd:
    fd = memfd.create("ours", size)
    with mmap.mmap(fd.fileno(), size) as memory:
        for start in range(0, size, 1 << 20):
            end = min(size, start + (1 << 20))
            memory[start:end] = b"Z" * (end - start)
    return fd


def preserve(name: str, count: int, size: int) -> None:
    parcels = [Parcel(filled(size).detach(), token) for token in range(1, count + 1)]
    for left in reversed(range(TIMES)):
        shipment = KernelCarrier().ship(name)
        begin = time.monotonic_ns()
        shipment.add(parcels)
        print(time.monotonic_ns() - begin, flush=True)
        if left:
            shipment.discard()
    signal.pause()


def retrieve(name: str, count: int) -> None:
    delivery = KernelCarrier().receive(name)
    assert delivery is not None
    begin = time.monotonic_ns()
    taken = [delivery.take(token) for token in range(1, count + 1)]
    print(time.monotonic_ns() - begin, flush=True)
    for fd in taken:
        fd.close()


resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
what, session, *numbers = sys.argv[1:]
{"preserve": preserve, "retrieve": retrieve}[what](session, *map(int, numbers))
