"""Files by path, without being led astray: openat2(2), statx(2), statfs(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import NamedTuple

from fdbox.errors import KernelError
from fdbox.linux.fd import OwnedFd
from fdbox.linux.syscalls import last_error, libc, syscall

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_BTIME = struct.Struct("=qI")  # struct statx_timestamp { __s64 tv_sec; __u32 tv_nsec; ... }
_STATX_SIZE, _BTIME_AT = 256, 0x50
_HOW = struct.Struct("=QQQ")  # struct open_how { __u64 flags, mode, resolve; }
# include/uapi/linux/openat2.h
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS = 0x02, 0x04
#: types of file systems (include/uapi/linux/magic.h)
TMPFS, RAMFS, HUGETLBFS, FUSE = 0x01021994, 0x858458F6, 0x958458F6, 0x65735546
OVERLAY = 0x794C7630
_REMEDIES = {
    errno.ENOENT: "make it again, and put it into a box anew",
    errno.ELOOP: "a part of the path is a symbolic link now; it was none",
    errno.ENOSYS: "openat2(2) needs Linux 5.6",
}


class Identity(NamedTuple):
    """What a file is, whatever it is called; `born` is nanoseconds since the epoch, 0 where the file system does not tell."""

    device: int
    inode: int
    born: int
    #: S_IFMT
    type: int

    def is_same(self, other: Identity) -> bool:
        """Return whether both are one file, although the kernel may be another.

        Only a block device keeps its number: that of any other file system (major 0) is given anew at each boot.
        """
        if (self.inode, self.type) != (other.inode, other.type):
            return False
        if os.major(self.device) and self.device != other.device:
            return False
        return not (self.born and other.born) or self.born == other.born


def shown(path: str) -> str:
    """Return a file name for people, as text that can be written: bytes of it that are no UTF-8 become U+FFFD."""
    return os.fsencode(path).decode(errors="replace")


def is_regular(fd: int) -> bool:
    """Return whether a borrowed descriptor is of a regular file, memory among them. OSError EBADF."""
    return stat.S_ISREG(os.fstat(fd).st_mode)


def inode(fd: int) -> tuple[int, int]:
    """Return what tells a file from every other that is there now: device and inode number. OSError EBADF."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def identity(fd: int) -> Identity:
    """Return what a borrowed descriptor, O_PATH or not, stands for. OSError EBADF."""
    status = os.fstat(fd)
    return Identity(status.st_dev, status.st_ino, _born(fd), stat.S_IFMT(status.st_mode))


def _born(fd: int) -> int:
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) != 0:
        raise last_error()
    (mask,) = struct.unpack_from("=I", buffer.raw)
    if not mask & _STATX_BTIME:
        return 0
    seconds, nanoseconds = _BTIME.unpack_from(buffer.raw, _BTIME_AT)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def find(path: str, flags: int = 0, folder: int = _AT_FDCWD) -> OwnedFd:
    """Return an O_PATH descriptor of what is at a path of which no part is a symbolic link; the last may be one, and is not followed.

    It opens nothing, and so neither blocks nor has effects. `flags` may have O_DIRECTORY; a relative path is relative to
    `folder`.

    KernelError: ENOENT, ELOOP, ENOTDIR, EACCES, ENOSYS.
    """
    flags |= os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    how = _HOW.pack(flags, 0, _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS)
    try:
        return OwnedFd(syscall("openat2", folder, os.fsencode(path), how, _HOW.size))
    except OSError as error:
        code = error.errno or 0
        raise KernelError(
            f"cannot find {shown(path)}: {error.strerror}", errno=code, remedy=_REMEDIES.get(code)
        ) from error


def filesystem(fd: int) -> int:
    """Return the type of a file's file system. KernelError EBADF."""
    # struct statfs { __fsword_t f_type; ... }: at most 120 bytes, f_type a long
    buffer = (ctypes.c_long * 32)()
    if libc.fstatfs(fd, ctypes.byref(buffer)) != 0:
        error = last_error()
        raise KernelError(
            f"cannot tell the file system of descriptor {fd}: {error.strerror}",
            errno=error.errno or 0,
        ) from error
    return int(buffer[0]) & 0xFFFFFFFF
