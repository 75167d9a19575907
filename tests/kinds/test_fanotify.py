from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry
from fdbox.linux import fanotify
from fdbox.linux.fanotify import Mark
from fdbox.linux.fd import queued
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.kinds.conformance import World

MODIFY, CLOSE_WRITE, CHILDREN, ONDIR = 0x2, 0x8, 0x08000000, 0x40000000
SURVIVES = 0x40
EVENT = 24  # struct fanotify_event_metadata


def marked(flags: int = 0, *, late: bool = False) -> Callable[[Path], Entries]:
    """Return what marks a folder and a file, of which it ignores something."""

    def make(folder: Path) -> Entries:
        (folder / "watched").mkdir()
        (folder / "file").write_bytes(b"content")
        fd = fanotify.create(flags, os.O_RDONLY)
        fanotify.add(
            fd.fileno(),
            str(folder / "watched"),
            Mark(fanotify.MARK_INODE, 0, CLOSE_WRITE | CHILDREN | ONDIR, 0),
        )
        fanotify.add(
            fd.fileno(),
            str(folder / "file"),
            Mark(fanotify.MARK_INODE, SURVIVES, CLOSE_WRITE, MODIFY),
        )
        if late:
            (folder / "file").write_bytes(b"changed")
        return {"marks": fd}

    return make


def of_mounts(folder: Path) -> Entries:
    fd = fanotify.create(0, os.O_RDONLY)
    fanotify.add(fd.fileno(), str(folder), Mark(fanotify.MARK_MOUNT, SURVIVES, 0, MODIFY))
    fanotify.add(fd.fileno(), str(folder), Mark(fanotify.MARK_FILESYSTEM, SURVIVES, 0, MODIFY))
    return {"marks": fd}


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    fd = fds["marks"]
    group = fanotify.inspect(fd)
    found: list[Any] = [group.flags, group.event_flags, fcntl.fcntl(fd, fcntl.F_GETFL)]
    found.append(
        sorted([mark.scope, mark.flags, mark.events, mark.ignored] for mark in group.marks)
    )
    if (folder / "file").exists():
        before = queued(fd)
        if before:
            close_events(os.read(fd, 4096))
        (folder / "watched" / "new").write_bytes(b"new")
        (folder / "file").write_bytes(b"more")
        found.append(close_events(os.read(fd, 4096)))
    return found


def close_events(raw: bytes) -> int:
    """Return how many events there are; each has a descriptor."""
    for at in range(0, len(raw), EVENT):
        os.close(int.from_bytes(raw[at + 16 : at + 20], "little"))
    return len(raw) // EVENT


def disturb(fds: Mapping[str, int]) -> None:
    fanotify.add(fds["marks"], "/", Mark(fanotify.MARK_INODE, 0, CLOSE_WRITE, 0))


SAMPLES = [
    Sample("fanotify", {"marks": "fanotify"}, marked(0x2), observe, disturb, root=True),
    Sample("fanotify of mounts", {"marks": "fanotify"}, of_mounts, observe, disturb, root=True),
    Sample(
        "fanotify with an event",
        {"marks": "fanotify"},
        marked(late=True),
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
    assert "its mark of" in loss.reason
    assert len(fanotify.inspect(entries["marks"].fileno()).marks) == 1


@pytest.mark.root
def test_who_is_asked_for_permission_is_refused(world: World) -> None:
    entries = {"marks": fanotify.create(0x4, os.O_RDONLY)}
    world.made.append(entries)
    with pytest.raises(CannotCarry, match="programs wait for its answers"):
        world.seal(entries)
