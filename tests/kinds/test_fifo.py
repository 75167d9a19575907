from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Any

from fdbox.linux import pipe
from fdbox.linux.fd import open_path, queued
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.kinds.conformance import World


def opened(*flags: int, write: bytes = b"") -> Callable[[Path], Entries]:
    """Return what opens a FIFO with each of some flags, in this order, with something queued."""

    def make(folder: Path) -> Entries:
        os.mkfifo(folder / "fifo")
        entries = {
            f"end {number}": open_path(folder / "fifo", one | os.O_NONBLOCK)
            for number, one in enumerate(flags)
        }
        if write:
            os.write(entries[f"end {len(flags) - 1}"].fileno(), write)
        return entries

    return make


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    found = []
    for fd in fds.values():
        assert os.path.samestat(os.fstat(fd), (folder / "fifo").stat())
        found.append([fcntl.fcntl(fd, fcntl.F_GETFL), pipe.capacity(fd)])
    first = fds["end 0"]
    return [found, os.read(first, 99).decode() if queued(first) else ""]


def disturb(fds: Mapping[str, int]) -> None:
    os.write(fds[f"end {len(fds) - 1}"], b"late")


SAMPLES = [
    Sample("fifo reader", {"end 0": "fifo"}, opened(os.O_RDONLY), observe),
    Sample(
        "fifo reader and writer",
        {"end 0": "fifo", "end 1": "fifo"},
        opened(os.O_RDONLY, os.O_WRONLY, write=b"queued"),
        observe,
        disturb,
    ),
    Sample("fifo both ways", {"end 0": "fifo"}, opened(os.O_RDWR, write=b"own"), observe, disturb),
]


def test_a_file_in_its_place_is_not_opened(world: World) -> None:
    world.jump(SAMPLES[0], world.make(SAMPLES[0]))
    (world.folder / "own" / "fifo").unlink()
    (world.folder / "own" / "fifo").write_bytes(b"a file")
    entries, (loss,) = world.arrive()
    assert entries == {}
    assert "is another file than it was" in loss.reason
