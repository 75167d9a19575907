from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry
from fdbox.linux import inotify
from fdbox.linux.fd import queued
from fdbox.linux.syscalls import libc
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.kinds.conformance import World

CREATE, DELETE_SELF, MODIFY, ONLYDIR = 0x100, 0x400, 0x2, 0x01000000
EVENT = struct.Struct("=iIII")


def watching(flags: int = 0, *, late: bool = False) -> Callable[[Path], Entries]:
    """Return what watches a directory as 7 and a file in it as 3."""

    def make(folder: Path) -> Entries:
        (folder / "watched").mkdir()
        (folder / "file").write_bytes(b"content")
        fd = inotify.create(flags)
        inotify.add(fd.fileno(), str(folder / "watched"), CREATE | ONLYDIR, 7)
        inotify.add(fd.fileno(), str(folder / "file"), MODIFY | DELETE_SELF, 3)
        if late:
            (folder / "file").write_bytes(b"changed")
        return {"inotify": fd}

    return make


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    fd = fds["inotify"]
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    masks = [[watch.number, watch.mask] for watch in inotify.watches(fd)]
    if queued(fd):
        os.read(fd, 4096)
    (folder / "watched" / "new").touch()
    with (folder / "file").open("ab") as file:
        file.write(b"more")
    events = os.read(fd, 4096)
    found = []
    while events:
        number, mask, _, length = EVENT.unpack_from(events)
        name = events[EVENT.size : EVENT.size + length].rstrip(b"\0").decode()
        found.append([number, mask, name])
        events = events[EVENT.size + length :]
    return [flags, masks, found]


def disturb(fds: Mapping[str, int]) -> None:
    assert libc.inotify_rm_watch(fds["inotify"], 7) == 0


SAMPLES = [
    Sample("inotify", {"inotify": "inotify"}, watching(os.O_NONBLOCK), observe, disturb, root=True),
    Sample(
        "inotify with an event",
        {"inotify": "inotify"},
        watching(late=True),
        observe,
        lost=("events that were not read",),
        root=True,
    ),
]


@pytest.mark.root
def test_what_is_gone_is_told_and_the_others_go_on(world: World) -> None:
    world.jump(SAMPLES[0], world.make(SAMPLES[0]))
    (world.folder / "own" / "file").unlink()
    entries, (loss,) = world.arrive()
    assert "its watch 3 of" in loss.reason
    assert [watch.number for watch in inotify.watches(entries["inotify"].fileno())] == [7]


@pytest.mark.root
def test_a_watch_of_what_has_no_path_is_refused(world: World) -> None:
    entries = world.make(SAMPLES[0])
    with (world.folder / "own" / "file").open("rb"):
        (world.folder / "own" / "file").unlink()
        with pytest.raises(CannotCarry, match=r"'inotify'.*its watch 3 is of"):
            world.seal(entries)
