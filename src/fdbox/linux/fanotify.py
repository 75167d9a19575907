"""Groups of marks on files, mounts and file systems (fanotify(7))."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import KernelError
from fdbox.linux import fdinfo, handles, paths
from fdbox.linux.fd import OwnedFd
from fdbox.linux.syscalls import last_error, libc

if TYPE_CHECKING:
    from fdbox.linux.handles import Handle

# include/uapi/linux/fanotify.h
CLASSES = 0x0C  # FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT: they are asked for permission
MARK_INODE, MARK_MOUNT, MARK_FILESYSTEM = 0x00, 0x10, 0x100
_MARK_ADD, _IGNORED, _SURVIVES, _EVICTABLE, _IGNORE = 0x01, 0x20, 0x40, 0x200, 0x400
_INIT_CLOEXEC, _INIT_NONBLOCK = 0x1, 0x2
_AT_FDCWD = -100
_REMEDIES = {
    errno.EPERM: "most of fanotify needs CAP_SYS_ADMIN",
    errno.EINVAL: "this kernel does not know one of its flags",
    errno.ENOSPC: "raise fs.fanotify.max_user_marks",
    errno.EMFILE: "raise fs.fanotify.max_user_groups",
    errno.ENODEV: "the file system has no handles or no identifier",
}


class Mark(NamedTuple):
    """One mark: on what (MARK_*), FAN_MARK_* flags, the events it reports and those it ignores.

    `file` is told of an inode, `number` is the mount's, or the file system's device.
    """

    scope: int
    flags: int
    events: int
    ignored: int
    file: Handle | None = None
    number: int = 0


class Group(NamedTuple):
    """FAN_* flags of fanotify_init(2), O_* of the files in its events, and its marks."""

    flags: int
    event_flags: int
    marks: list[Mark]


def _failed(what: str) -> KernelError:
    error = last_error()
    code = error.errno or 0
    return KernelError(f"{what}: {error.strerror}", errno=code, remedy=_REMEDIES.get(code))


def create(flags: int, event_flags: int) -> OwnedFd:
    """Return a group without marks, close-on-exec. KernelError EPERM, EINVAL, EMFILE."""
    fd = int(libc.fanotify_init(ctypes.c_uint(flags | _INIT_CLOEXEC), ctypes.c_uint(event_flags)))
    if fd < 0:
        raise _failed("cannot create a fanotify group")
    return OwnedFd(fd)


def inspect(fd: int) -> Group:
    """Return what a borrowed group is. KernelError EBADF."""
    first, *marks = fdinfo.read(fd).line("fanotify").splitlines()
    told = _words(first)
    found = sorted(_mark(_words(line)) for line in marks)
    return Group(int(told["flags"], 16) & ~_INIT_CLOEXEC, int(told["event-flags"], 16), found)


def _words(line: str) -> dict[str, str]:
    return dict(word.split(":", 1) for word in line.split())


def _mark(told: dict[str, str]) -> Mark:
    flags, events, ignored = (int(told[key], 16) for key in ("mflags", "mask", "ignored_mask"))
    if "ino" in told:
        return Mark(MARK_INODE, flags, events, ignored, handles.parse(told))
    if "mnt_id" in told:
        return Mark(MARK_MOUNT, flags, events, ignored, None, int(told["mnt_id"], 16))
    return Mark(MARK_FILESYSTEM, flags, events, ignored, None, fdinfo.device(int(told["sdev"], 16)))


def add(fd: int, path: str, mark: Mark) -> None:
    """Mark what is at a path, for events and for what is ignored of them. KernelError."""
    if mark.events:
        _add(fd, path, mark.scope | mark.flags & _EVICTABLE, mark.events)
    if mark.ignored:
        how = _IGNORE if mark.flags & _IGNORE else _IGNORED
        how |= mark.flags & (_SURVIVES | _EVICTABLE)
        _add(fd, path, mark.scope | how, mark.ignored)


def _add(fd: int, path: str, flags: int, events: int) -> None:
    raw = os.fsencode(path)
    if libc.fanotify_mark(fd, _MARK_ADD | flags, ctypes.c_uint64(events), _AT_FDCWD, raw) != 0:
        raise _failed(f"cannot mark {paths.shown(path)}")
