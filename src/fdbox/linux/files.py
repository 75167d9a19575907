"""Files that have to be there after a power cut: fsync(2), rename(2), O_DIRECT (open(2), Documentation/filesystems)."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

from fdbox.linux.fd import OwnedFd, open_path

if TYPE_CHECKING:
    from pathlib import Path

#: what offsets, lengths and addresses of O_DIRECT are multiples of, whatever the device (STATX_DIOALIGN can ask for less)
BLOCK = 4096

#: what writing fails with where there is no room left: of the file system, or of the user
FULL = (errno.ENOSPC, errno.EDQUOT)


def open_direct(path: Path, flags: int, mode: int = 0o600) -> OwnedFd:
    """Return a file opened past the page cache, or through it where the file system has no other way (EINVAL); OSError."""
    try:
        return open_path(path, flags | os.O_DIRECT, mode)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return open_path(path, flags & ~os.O_EXCL, mode)  # ext4 has made it, and then refused


def leave_direct(fd: int) -> None:
    """Go through the page cache from now on; OSError EBADF."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)


def is_direct(fd: int) -> bool:
    """Return whether an open file goes past the page cache."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def sync_folder(path: Path) -> None:
    """Make the names in a folder outlive a power cut; OSError."""
    with open_path(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
        os.fsync(folder.fileno())


def make_folder(path: Path) -> None:
    """Make a folder, for its owner alone, that outlives a power cut; nothing happens if it is there. OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir(0o700)
    except FileExistsError:  # somebody was faster, or it is something else
        if not path.is_dir():
            raise
        return
    sync_folder(path.parent)


def lock_folder(path: Path) -> OwnedFd | None:
    """Return a folder opened and locked (flock(2)) until that is closed, or None if somebody else has locked it; OSError."""
    folder = open_path(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        folder.close()
        return None
    except BaseException:
        folder.close()
        raise
    return folder


def free_bytes(path: Path) -> int:
    """Return what an ordinary user may still write to the file system of a path; OSError."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
