"""Regular files by a path that somebody has named.

What is none is not even opened: a FIFO would have us wait for a writer, some devices do something when they are opened, and
/dev/zero never ends.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from fdbox.linux.fd import OwnedFd, open_path

if TYPE_CHECKING:
    from pathlib import Path

_TYPES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def size(path: Path) -> int:
    """Return the bytes of a regular file; OSError, EINVAL if it is something else: its `strerror` says what."""
    return _checked(path.stat(), path).st_size


def open_to_read(path: Path) -> OwnedFd:
    """Return a regular file opened, at once in any case; OSError as `size`."""
    size(path)
    fd = open_path(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _checked(os.fstat(fd.fileno()), path)  # it may be another by now
        os.set_blocking(fd.fileno(), True)  # 9p would read less at a time than it is asked for
    except BaseException:
        fd.close()
        raise
    return fd


def read(path: Path, most: int) -> bytes:
    """Return what is in a regular file; OSError as `size`, and EFBIG if that is more than `most` bytes."""
    with open_to_read(path) as fd:
        parts, left = [], most + 1  # not as many as stat(2) says: in /proc that is 0
        while left and (part := os.read(fd.fileno(), left)):
            parts.append(part)
            left -= len(part)
    if not left:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return b"".join(parts)


def _checked(status: os.stat_result, path: Path) -> os.stat_result:
    if stat.S_ISREG(status.st_mode):
        return status
    what = _TYPES.get(stat.S_IFMT(status.st_mode), "something else")
    raise OSError(errno.EINVAL, f"it is {what}, not a regular file", str(path))
