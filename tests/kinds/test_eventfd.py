from __future__ import annotations

import fcntl
import os
import select
from typing import TYPE_CHECKING, Any

from fdbox.linux.fd import OwnedFd
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def make(count: int, flags: int) -> Any:  # noqa: ANN401 - a function
    def made(folder: Path) -> Entries:
        fd = OwnedFd(os.eventfd(0, flags | os.EFD_CLOEXEC))
        if count:
            os.eventfd_write(fd.fileno(), count)
        return {"eventfd": fd}

    return made


def observe(fds: Mapping[str, int], folder: Path) -> list[int]:
    fd = fds["eventfd"]
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    readable = bool(select.select([fd], [], [], 0)[0])
    return [flags, os.eventfd_read(fd) if readable else 0, bool(select.select([fd], [], [], 0)[0])]


def disturb(fds: Mapping[str, int]) -> None:
    os.eventfd_write(fds["eventfd"], 1)


SAMPLES = [
    Sample(f"eventfd {name}", {"eventfd": "eventfd"}, make(count, flags), observe, disturb)
    for name, count, flags in (
        ("empty", 0, 0),
        ("counter", 3, os.EFD_NONBLOCK),
        ("semaphore", 3, os.EFD_SEMAPHORE),
        ("full", (1 << 64) - 3, 0),
    )
]
