"""What crosses in the test, and how it is described: the same code looks at it before and after."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdbox.linux import memfd, pagemap
from fdbox.linux.memfd import Seals
from tests.vm.scripts import sqlite_fd

if TYPE_CHECKING:
    import fdbox

NOTES = Path(os.environ.get("FDBOX_NOTES", "/tmp"))
#: by what boxes cross here
CARRIER = os.environ.get("FDBOX_CARRIER", "kernel")
USERS = (1001, 1002, 1003)
SMALL = 1000
LARGE = "source-package"
DATABASE = "database"
ROWS = 5000
_MADV_POPULATE_READ = 22  # include/uapi/asm-generic/mman-common.h


def small_name(number: int) -> str:
    """Return the name of a small entry, some of them not ASCII and with spaces."""
    return f"entry {number} äöü ✓" if number % 10 == 0 else f"entry-{number}"


def make_small(number: int) -> tuple[fdbox.OwnedFd, int]:
    """Return a small memfd with seals, mode, owner, position and access of its own, and its owner."""
    fd = memfd.create(f"mem-{number}", seal_exec=number % 7 == 0)
    os.pwrite(fd.fileno(), f"content {number} ".encode() * (1 + number % 300), 0)
    if number % 5 == 0:  # mostly a hole: it travels as a copy
        os.pwrite(fd.fileno(), b"the end", (4 << 20) + number)
    owner = USERS[number % len(USERS)]
    os.fchown(fd.fileno(), owner, owner)
    if number % 7:
        os.fchmod(fd.fileno(), (0o600, 0o640, 0o755)[number % 3])
    wanted = Seals(0)
    wanted |= Seals.SHRINK if number % 2 else Seals(0)
    wanted |= Seals.GROW if number % 4 == 1 else Seals(0)
    wanted |= Seals.WRITE if number % 8 == 3 else Seals(0)
    wanted |= Seals.SEAL if number % 16 == 5 else Seals(0)
    if wanted:
        memfd.add_seals(fd.fileno(), wanted)
    if number % 6 == 2:
        readable = memfd.reopen(fd.fileno(), os.O_RDONLY)
        fd.close()
        fd = readable
    elif number % 6 == 4:
        fcntl.fcntl(fd.fileno(), fcntl.F_SETFL, os.O_APPEND)
    os.lseek(fd.fileno(), number * 3, os.SEEK_SET)
    return fd, owner


def describe(fd: int) -> dict[str, Any]:
    """Return all that must be the same afterwards."""
    status = os.fstat(fd)
    digest = hashlib.sha256()
    at = 0
    with memfd.reopen(fd, os.O_RDONLY) as own:
        while piece := os.pread(own.fileno(), 1 << 20, at):
            digest.update(piece)
            at += len(piece)
    return {
        "size": status.st_size,
        "mode": oct(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "seals": int(memfd.get_seals(fd)),
        "position": os.lseek(fd, 0, os.SEEK_CUR),
        "flags": fcntl.fcntl(fd, fcntl.F_GETFL),
        "sha256": digest.hexdigest(),
        "sparse": status.st_blocks * 512 < status.st_size // 2,
    }


def describe_all(client: fdbox.Client) -> dict[str, dict[str, Any]]:
    """Return every entry of every box, by owner, box and name, with the label that the daemon shows."""
    found = {}
    for listed in client.boxes():
        box = client.box(listed.name, listed.owner)
        labels = {entry.name: entry.label for entry in box.list()}
        for name, fd in box.get_many(labels).items():
            with fd:
                key = f"{listed.owner}/{listed.name}/{name}"
                found[key] = {**describe(fd.fileno()), "label": labels[name]}
    return found


def large_frames(client: fdbox.Client) -> list[int]:
    """Return the physical page numbers of the large memory."""
    with client.box("bulk").memory(LARGE) as memory:
        memory.madvise(_MADV_POPULATE_READ)
        return pagemap.frames(memory, memory.size)


def check_database(client: fdbox.Client) -> None:
    """Read the database where it is; AssertionError if a row is not as it was written."""
    with client.box("bulk").get(DATABASE) as fd:
        assert os.fstat(fd.fileno()).st_size > ROWS * len("row"), "the database is in the memory"
        base = sqlite_fd.connect(fd.fileno(), read_only=True)
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        rows = base.execute("select id, text from t order by id").fetchall()
        base.close()
    assert rows == [(number, f"row {number}") for number in range(ROWS)]


def note(name: str, value: object) -> None:
    """Leave something for the other side of the jump."""
    (NOTES / name).write_text(json.dumps(value))


def noted(name: str) -> Any:  # noqa: ANN401 - what was left
    """Return what was left."""
    return json.loads((NOTES / name).read_text())
