"""Files by their handles (open_by_handle_at(2)), and the mounts that they are found by."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import KernelError
from fdbox.linux import fdinfo, mountinfo
from fdbox.linux.fd import OwnedFd, open_path
from fdbox.linux.syscalls import last_error, libc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HANDLE = struct.Struct(
    "=Ii"
)  # struct file_handle { unsigned int handle_bytes; int handle_type; ... }
_REMEDIES = {
    errno.EPERM: "finding a watched file by its handle needs CAP_DAC_READ_SEARCH",
    errno.ESTALE: "the file was removed",
}


class Handle(NamedTuple):
    """A file that is watched: its inode, and its handle (b"" where its file system has none)."""

    device: int
    inode: int
    type: int
    data: bytes


def parse(told: Mapping[str, str]) -> Handle:
    """Return the file of a mark in a fdinfo file, of which `told` are the words (fs/notify/fdinfo.c)."""
    return Handle(
        fdinfo.device(int(told["sdev"], 16)),
        int(told["ino"], 16),
        int(told.get("fhandle-type", "0"), 16),
        bytes.fromhex(told.get("f_handle", "")),
    )


def open_handle(file: Handle) -> OwnedFd:
    """Return an O_PATH descriptor of a file, on whatever mount of its file system is seen from here.

    KernelError: EPERM without CAP_DAC_READ_SEARCH; ESTALE, it is gone; ENOENT, no mount of it is seen.
    """
    raw = _HANDLE.pack(len(file.data), file.type) + file.data
    failure = KernelError("no mount of its file system is seen from here", errno=errno.ENOENT)
    for point in mounts_of(file.device):
        try:
            mount = open_path(point, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        except OSError:
            continue
        with mount:
            found = int(libc.open_by_handle_at(mount.fileno(), raw, os.O_PATH | os.O_CLOEXEC))
            if found >= 0:
                return OwnedFd(found)
            error = last_error()
            failure = KernelError(
                f"it cannot be opened by its handle: {error.strerror}",
                errno=error.errno or 0,
                remedy=_REMEDIES.get(error.errno or 0),
            )
    raise failure


def mounts_of(number: int) -> Iterator[str]:
    """Yield where a file system is mounted, as seen from here."""
    wanted = f"{os.major(number)}:{os.minor(number)}"
    return (mount.point for mount in mountinfo.mounts() if mount.device == wanted)


def mount_point(number: int) -> str | None:
    """Return where the mount of a number (`mnt_id`) is; None if it is not seen from here."""
    return next((mount.point for mount in mountinfo.mounts() if mount.number == number), None)
