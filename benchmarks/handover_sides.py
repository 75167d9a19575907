"""What both scripts of handover.py need to know: who is measured, with what, and where the figures go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: name -> memfds, bytes of each
WORK = {"10,000 memfds": (10_000, 4096), "1 GiB": (1, 1 << 30)}
#: as in ioctls.c and carrier_process.py
TIMES = 4
ROUNDS = {"10,000 memfds": 3, "1 GiB": 2}
SIDES = {
    "C": [os.environ["FDBOX_IOCTLS"]],
    "fdbox": [sys.executable, str(Path(__file__).with_name("carrier_process.py"))],
}


def runs() -> Iterator[tuple[str, str, int, int]]:
    """Yield (side, session, memfds, bytes), the sides in turns."""
    for name, (count, size) in WORK.items():
        for number in range(ROUNDS[name]):
            for side in SIDES if number % 2 else reversed(SIDES):
                yield side, f"{name}/{side}/{number}", count, size


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def note(session: str, what: str, nanoseconds: int) -> None:
    print(f"{session}/{what}={nanoseconds}", flush=True)
