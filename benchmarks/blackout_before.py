#!/usr/bin/env python3
"""In the first kernel: make the memory, predict, preserve, and have another process hold it until the jump."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.handover import cost
from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.linux import layout, memfd
from fdbox.ports import Parcel

if TYPE_CHECKING:
    from fdbox.linux.fd import OwnedFd

MIB, PAGE = 1 << 20, 4096
SHMEM = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def fill(fd: int, pages: range, text: bytes) -> None:
    for page in pages:
        os.pwrite(fd, text * PAGE, page * PAGE)


def made(size: int, how: str, piece: int) -> OwnedFd:
    SHMEM.write_text("always" if how == "huge" else "never")
    fd = memfd.create("ours", size * MIB)
    if how in ("4k", "huge"):
        for at in range(0, size * MIB, MIB):
            os.pwrite(fd.fileno(), b"x" * MIB, at)
        return fd
    count = size * MIB // PAGE
    with memfd.create("others", size * MIB) as others:
        for start in range(0, count, piece):
            pages = range(start, min(count, start + piece))
            fill(fd.fileno(), pages, b"x")
            fill(others.fileno(), pages, b"y")
    if how == "compacted":
        with memfd.reopen(fd.fileno(), os.O_RDONLY) as own:
            for start in layout.may_collapse(own.fileno()):
                layout.collapse(own.fileno(), start)
    return fd


fd = made(*json.loads(os.environ["FDBOX_CASE"]))
lies = layout.survey(fd.fileno())
turn = cost.turn_seconds()
shipment = KernelCarrier().ship("blackout")
begun = time.monotonic()
shipment.add([Parcel(fd.fileno(), 1)])
figures = {
    "pages": lies.pages,
    "huge": lies.huge,
    "runs": lies.runs,
    "movable": lies.movable,
    "turn": turn,
    "preserve": time.monotonic() - begun,
}
print(f"FIGURES {json.dumps(figures)}", flush=True)
if os.fork() == 0:
    os.setsid()
    for number in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    signal.pause()
sys.stdout.flush()
os._exit(0)
