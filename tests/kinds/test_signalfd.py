from __future__ import annotations

import ctypes
import fcntl
import os
import signal
from typing import TYPE_CHECKING, Any

from fdbox.linux import signalfd
from fdbox.linux.syscalls import libc
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def make(mask: int, flags: int = 0) -> Callable[[Path], Entries]:
    return lambda folder: {"signals": signalfd.create(mask, flags)}


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    """Return the mask and the flags, and what is read of two signals that are sent to this process."""
    fd = fds["signals"]
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    os.set_blocking(fd, False)
    try:
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.raise_signal(number)
        found = [int(number) for number in signalfd.read(fd)]
        while signal.sigpending():  # taken, so that none of them ends the test
            signal.sigwait({signal.SIGUSR1, signal.SIGUSR2})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return [hex(signalfd.mask_of(fd)), flags, found]


def disturb(fds: Mapping[str, int]) -> None:
    changed = (1 << 5).to_bytes(128, "little")
    assert libc.signalfd(ctypes.c_int(fds["signals"]), changed, 0) == fds["signals"]


USR1, USR2 = 1 << (signal.SIGUSR1 - 1), 1 << (signal.SIGUSR2 - 1)

SAMPLES = [
    Sample(f"signalfd {name}", {"signals": "signalfd"}, make(mask, flags), observe, disturb)
    for name, mask, flags in (
        ("of one signal", USR1, 0),
        ("of several", USR1 | USR2 | 1 << 63, os.O_NONBLOCK),
        ("of none", 0, 0),
        ("of the C library's own", 1 << 31 | 1 << 32, 0),
    )
]
