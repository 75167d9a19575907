"""Watches of files and directories (inotify(7))."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import KernelError
from fdbox.linux import fdinfo, handles, paths
from fdbox.linux.fd import OwnedFd
from fdbox.linux.syscalls import last_error, libc

if TYPE_CHECKING:
    from fdbox.linux.handles import Handle

_INT = struct.Struct("=i")
_SET_NEXT_WD = (
    0x40044900  # INOTIFY_IOC_SETNEXTWD = _IOW('I', 0, __s32), with CONFIG_CHECKPOINT_RESTORE
)
_MASK_CREATE = 0x10000000  # IN_MASK_CREATE, Linux 4.18: no watch of the file may be there yet
_HANDLE = struct.Struct(
    "=Ii"
)  # struct file_handle { unsigned int handle_bytes; int handle_type; ... }
MAX_WATCH = (1 << 31) - 1
_REMEDIES = {
    errno.ENOSPC: "raise fs.inotify.max_user_watches",
    errno.EMFILE: "raise fs.inotify.max_user_instances",
}


class Watch(NamedTuple):
    """One watch: its number, IN_* mask, and the file."""

    number: int
    mask: int
    file: Handle


def _failed(what: str) -> KernelError:
    error = last_error()
    code = error.errno or 0
    return KernelError(f"{what}: {error.strerror}", errno=code, remedy=_REMEDIES.get(code))


def create(flags: int = 0) -> OwnedFd:
    """Return one that watches nothing, close-on-exec; `flags` may have O_NONBLOCK. KernelError EMFILE, ENFILE."""
    fd = int(libc.inotify_init1(flags | os.O_CLOEXEC))
    if fd < 0:
        raise _failed("cannot create an inotify instance")
    return OwnedFd(fd)


def watches(fd: int) -> list[Watch]:
    """Return the watches of a borrowed descriptor. KernelError EBADF."""
    lines = fdinfo.read(fd).extra.get("inotify", "").splitlines()
    return sorted(_parsed(line) for line in lines)


def _parsed(line: str) -> Watch:
    # as in "wd:1 ino:2a sdev:800001 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:..." (fs/notify/fdinfo.c)
    told = dict(word.split(":", 1) for word in line.split())
    return Watch(int(told["wd"]), int(told["mask"], 16), handles.parse(told))


def add(fd: int, path: str, mask: int, number: int) -> None:
    """Watch what is at a path, under a number.

    KernelError: ENOENT, ENOSPC, EACCES; ENOTTY, the kernel was built without INOTIFY_IOC_SETNEXTWD; EEXIST, it is
    watched already.
    """
    try:
        fcntl.ioctl(fd, _SET_NEXT_WD, number)
    except OSError as error:
        raise KernelError(
            f"cannot give a watch the number {number}: {error.strerror}", errno=error.errno or 0
        ) from error
    found = int(libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask | _MASK_CREATE)))
    if found < 0:
        raise _failed(f"cannot watch {paths.shown(path)}")
    if found != number:
        raise KernelError(f"the watch of {paths.shown(path)} has the number {found}, not {number}")
