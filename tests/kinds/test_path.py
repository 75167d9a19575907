"""O_PATH descriptors; and files that a process serves, which nobody may ask anything of twice."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, open_path
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.kinds.conformance import World


def file(folder: Path) -> Path:
    (folder / "it").write_bytes(b"content")
    return folder / "it"


def link(folder: Path) -> Path:
    (folder / "it").symlink_to("nowhere")
    return folder / "it"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "it")
    return folder / "it"


def unix(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "it"))
    return folder / "it"


def opened(make: Callable[[Path], Path], flags: int = 0) -> Callable[[Path], Entries]:
    return lambda folder: {"path": open_path(make(folder), os.O_PATH | flags)}


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    fd = fds["path"]
    status = os.fstat(fd)
    link = os.readlink(f"/proc/self/fd/{fd}")
    content = os.readlink("", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else ""
    return [
        oct(stat.S_IFMT(status.st_mode)),
        fcntl.fcntl(fd, fcntl.F_GETFL),
        link.removeprefix(str(folder)),
        content,
    ]


SAMPLES = [
    Sample(f"path to a {name}", {"path": "path"}, opened(make, flags), observe)
    for name, make, flags in (
        ("file", file, 0),
        ("file, not followed", file, os.O_NOFOLLOW),
        ("directory", lambda folder: folder, os.O_DIRECTORY),
        ("symbolic link", link, os.O_NOFOLLOW),
        ("FIFO", fifo, 0),
        ("socket", unix, 0),
    )
]


def test_a_path_to_what_has_none_is_refused(world: World) -> None:
    with memfd.create("m") as memory:
        entries = {"path": OwnedFd(os.open(f"/proc/self/fd/{memory.fileno()}", os.O_PATH))}
    world.made.append(entries)
    with pytest.raises(CannotCarry, match=r"/memfd:m \(deleted\) does not lead to it"):
        world.seal(entries)
