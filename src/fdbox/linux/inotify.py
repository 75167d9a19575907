"""Watches of files and directories (inotify(7)), and files by their handles (open_by_handle_at(2))."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import KernelError
from fdbox.linux import fdinfo
from fdbox.linux.fd import OwnedFd, open_path
from fdbox.linux.syscalls import last_error, libc

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    errno.EPERM: "finding a watched file by its handle needs CAP_DAC_READ_SEARCH",
    errno.ENOSPC: "raise fs.inotify.max_user_watches",
    errno.EMFILE: "raise fs.inotify.max_user_instances",
}


class Watch(NamedTuple):
    """One watch: its number, IN_* mask, the inode, and the file's handle (b"" where its file system has none)."""

    number: int
    mask: int
    device: int
    inode: int
    handle_type: int
    handle: bytes


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
    device = int(told["sdev"], 16)  # the kernel's own dev_t: 12 bits of major, 20 of minor
    return Watch(
        int(told["wd"]),
        int(told["mask"], 16),
        os.makedev(device >> 20, device & 0xFFFFF),
        int(told["ino"], 16),
        int(told.get("fhandle-type", "0"), 16),
        bytes.fromhex(told.get("f_handle", "")),
    )


def queued(fd: int) -> int:
    """Return the bytes of events that were not read (FIONREAD). OSError EBADF."""
    return int(_INT.unpack(fcntl.ioctl(fd, termios.FIONREAD, bytes(_INT.size)))[0])


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
        raise _failed(f"cannot watch {path}")
    if found != number:
        raise KernelError(f"the watch of {path} has the number {found}, not {number}")


def open_handle(device: int, handle_type: int, handle: bytes) -> OwnedFd:
    """Return an O_PATH descriptor of a file by its handle, on whatever mount of its file system is seen from here.

    KernelError: EPERM without CAP_DAC_READ_SEARCH; ESTALE, it is gone; ENOENT, no mount of it is seen.
    """
    raw = _HANDLE.pack(len(handle), handle_type) + handle
    failure = KernelError("no mount of its file system is seen from here", errno=errno.ENOENT)
    for point in _mounts_of(device):
        try:
            mount = open_path(point, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        except OSError:
            continue
        with mount:
            found = int(libc.open_by_handle_at(mount.fileno(), raw, os.O_PATH | os.O_CLOEXEC))
            if found >= 0:
                return OwnedFd(found)
            failure = _failed("cannot open a watched file by its handle")
    raise failure


def _mounts_of(device: int) -> Iterator[str]:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        words = line.split()
        if words[2] == wanted:
            yield words[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
