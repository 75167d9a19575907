"""What the kernel tells about a descriptor: /proc/self/fd and /proc/self/fdinfo (proc_pid_fd(5), proc_pid_fdinfo(5))."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Mapping


_MINOR_BITS = 20


@dataclass(frozen=True, slots=True)
class FdInfo:
    """One descriptor's fdinfo; `extra` has the lines that its kind of file adds, by key.

    `flags` is O_* including O_CLOEXEC. A key that comes more than once (epoll's `tfd`) has all its values in `extra`,
    one a line. `ino` is 0 on kernels before 5.15, which do not tell it.
    """

    pos: int
    flags: int
    mnt_id: int
    ino: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)

    def line(self, key: str) -> str:
        """Return what the kind of file adds under `key`; KernelError ENODATA on a kernel that does not tell it."""
        try:
            return self.extra[key]
        except KeyError:
            raise KernelError(
                f"the kernel does not tell {key!r} of this descriptor",
                errno=errno.ENODATA,
                remedy="a newer kernel, or one with CONFIG_CHECKPOINT_RESTORE, does",
            ) from None


def parse(text: str) -> FdInfo:
    """Return the parsed text of a fdinfo file; KernelError if it is not one."""
    lines: dict[str, str] = {}
    for line in text.splitlines():
        # inotify's lines have no colon after the first word: "inotify wd:1 ino:..."
        key, _, value = line.partition(" " if line.startswith(("inotify ", "fanotify ")) else ":")
        key, value = key.strip(), value.strip()
        lines[key] = f"{lines[key]}\n{value}" if key in lines else value
    try:
        return FdInfo(
            pos=int(lines.pop("pos")),
            flags=int(lines.pop("flags"), 8),
            mnt_id=int(lines.pop("mnt_id")),
            ino=int(lines.pop("ino", "0")),
            extra=lines,
        )
    except (KeyError, ValueError) as error:
        raise KernelError(f"not a fdinfo file: {error}", errno=errno.EINVAL) from error


def device(number: int) -> int:
    """Return a device number as stat(2) has it; the kernel's own has 12 bits of major, 20 of minor (include/linux/kdev_t.h)."""
    return os.makedev(number >> _MINOR_BITS, number & ((1 << _MINOR_BITS) - 1))


def link_of(fd: int) -> str:
    """Return what /proc/self/fd/N points to: a path, "/memfd:name (deleted)", "pipe:[123]", "anon_inode:[eventpoll]".

    KernelError with EBADF if it is not open. It never blocks, whatever file system the file is in.
    """
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - pathlib takes four times as long, and this is called often
    except OSError as error:
        raise KernelError(
            f"descriptor {fd} is not open", errno=errno.EBADF, remedy="is /proc mounted?"
        ) from error


def read(fd: int) -> FdInfo:
    """Return the fdinfo of a borrowed descriptor; KernelError with EBADF if it is not open."""
    try:
        # Its text may hold file names in any encoding.
        text = Path(f"/proc/self/fdinfo/{fd}").read_text(errors="surrogateescape")
    except FileNotFoundError as error:
        raise KernelError(
            f"descriptor {fd} is not open", errno=errno.EBADF, remedy="is /proc mounted?"
        ) from error
    return parse(text)
