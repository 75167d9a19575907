"""The folder of images: whether it is a place for them, and letting go of what is there."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, KernelError, NoRoom
from fdbox.linux import files, lasting
from fdbox.model import Carriage

if TYPE_CHECKING:
    from pathlib import Path

#: left free on the file system, whatever is written
RESERVE = 16 << 20
INDEX = "index"
ANYWHERE_ELSE = "name another folder: [image] directory in the configuration"


def nearest(directory: Path) -> Path:
    """Return the folder itself, or that of its parents in which it would be made; OSError."""
    return next(path for path in (directory, *directory.parents) if path.exists())


def room(directory: Path) -> int:
    """Return how many bytes images can take there; OSError."""
    return max(0, files.free_bytes(nearest(directory)) - RESERVE)


def no_room(directory: Path, wanted: int, free: int, **context: str) -> NoRoom:
    """Return the error for an image that does not fit."""
    return NoRoom(
        f"an image of {wanted} bytes does not fit into {directory}, where {free} can be taken",
        remedy=f"free some, or {ANYWHERE_ELSE}",
        **context,
    )


def obstacle(directory: Path) -> Carriage | None:
    """Return why no image can be in a folder, which need not be there yet; None if it can."""
    try:
        there = nearest(directory)
        in_memory = lasting.in_memory(there)
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            return cannot_write(directory, errno.EROFS)
        if not os.access(there, os.W_OK | os.X_OK):
            return cannot_write(directory, errno.EACCES)
    except OSError as error:
        return cannot_write(directory, error.errno or 0)
    if in_memory:
        why = f"{directory} is in memory, and ends with the kernel"
        return Carriage(None, why, ANYWHERE_ELSE)
    return None


def cannot_write(directory: Path, code: int) -> Carriage:
    """Return that none can be written, by the errno that says why."""
    why = f"no image can be written to {directory}: {os.strerror(code)}"
    return Carriage(None, why, ANYWHERE_ELSE)


def used_by_another(directory: Path) -> Carriage:
    """Return that another process has the folder's lock."""
    return Carriage(
        None, f"another fdbox writes to {directory}", f"end it, or {ANYWHERE_ELSE} of this one"
    )


def failed(what: str, path: Path, error: OSError) -> FdboxError:
    """Return the error to raise for what the file system has said: NoRoom, or KernelError."""
    if error.errno in files.FULL:
        return NoRoom(
            f"cannot {what} {path}: {error.strerror}", remedy=f"free some, or {ANYWHERE_ELSE}"
        )
    code = error.errno or 0
    return KernelError(f"cannot {what} {path}: {error.strerror}", errno=code, remedy=ANYWHERE_ELSE)


def let_go(index: Path) -> None:
    """Take an index away, and after it what it names and has arrived."""
    folder = index.parent
    index.unlink()
    files.sync_folder(folder)
    remove(folder, ".done", ".new")


def remove(folder: Path, *suffixes: str) -> None:
    """Remove files of these kinds, and the folder, if nothing else is there."""
    for path in folder.iterdir():
        if path.suffix in suffixes:
            path.unlink()
    with contextlib.suppress(OSError):  # what has not arrived stays
        folder.rmdir()


def mark_done(path: Path) -> None:
    """Let go of a box: when its index goes, if one names it."""
    if (path.parent / INDEX).exists():
        path.rename(path.with_suffix(".done"))
        return
    path.unlink()
    with contextlib.suppress(OSError):  # others are there
        path.parent.rmdir()
