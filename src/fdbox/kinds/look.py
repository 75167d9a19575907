"""What is seen of descriptors before anything is saved: one by one, and as the company that a box is."""

from __future__ import annotations

import bisect
import fcntl
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import CannotCarry, InvalidDescriptor, KernelError
from fdbox.linux import fdinfo, kcmp, memfd, paths, sock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fdbox.linux.sock import Family
    from fdbox.model import Description


class Look(NamedTuple):
    """What is seen of a descriptor from outside; enough to recognise its kind."""

    fd: int
    status: os.stat_result
    #: what /proc/self/fd/N points to (linux/fdinfo.py)
    link: str
    #: O_* of the open file description
    flags: int
    #: domain, type and protocol; None of what is no socket
    family: Family | None = None

    @property
    def label(self) -> str:
        """The link for people: a path's bytes need not be text."""
        return paths.shown(self.link)

    @property
    def inode(self) -> tuple[int, int]:
        """Device and inode number; all `anon_inode:` files share one."""
        return self.status.st_dev, self.status.st_ino

    @property
    def is_path(self) -> bool:
        """Whether it is an O_PATH descriptor, which says where a file is and opens nothing."""
        return bool(self.flags & os.O_PATH)


def glance(fd: int) -> Look | None:
    """Return what can be seen of a borrowed descriptor, or None if `look` and `recognise` could block.

    A file of FUSE can hang whoever looks at it. What has no path is the kernel's own, and so is what takes seals; the
    name alone proves nothing, for a file can be called "memfd:".

    Raises:
        InvalidDescriptor: it is not open.
    """
    link = _link(fd)
    if link.startswith("/") and not memfd.accepts_seals(fd):
        return None
    return _look(fd, link)


def look(fd: int) -> Look:
    """Return what can be seen of a borrowed descriptor; errors as `glance`. It may block."""
    return _look(fd, _link(fd))


def _link(fd: int) -> str:
    try:
        return fdinfo.link_of(fd)
    except KernelError as error:
        raise InvalidDescriptor(error.message) from error


def _look(fd: int, link: str) -> Look:
    try:
        status, flags = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL)
        family = sock.family(fd) if link.startswith("socket:") else None
    except OSError as error:
        raise InvalidDescriptor(f"descriptor {fd} cannot be read: {error.strerror}") from error
    return Look(fd, status, link, flags, family)


@dataclass(frozen=True, slots=True, eq=False)
class OpenFile:
    """One open file description to save; `entries` are the names of the entries that share it."""

    look: Look
    description: Description
    entries: tuple[str, ...]

    @property
    def fd(self) -> int:
        """A descriptor of it, borrowed."""
        return self.look.fd

    @property
    def entry(self) -> str:
        """The entry to name in an error."""
        return self.entries[0]

    def refuse(self, reason: str, remedy: str | None = None) -> CannotCarry:
        """Return the error that says why this one cannot be carried."""
        return CannotCarry(
            f"entry {self.entry!r} is a {self.description.kind}: {reason}",
            remedy=remedy,
            entry=self.entry,
            kind=self.description.kind,
        )


#: what kcmp(2) returns, as a sign
_SIGN = {0: 0, 1: -1, 2: 1}


def _compare(one: OpenFile, other: OpenFile) -> int:
    return _SIGN[kcmp.order(one.fd, other.fd)]


_by_kcmp = functools.cmp_to_key(_compare)


class Company:
    """The open file descriptions of one box, and how to find one among them."""

    def __init__(self, files: Iterable[OpenFile]) -> None:
        """Take them in the order of the box."""
        self.files: tuple[OpenFile, ...] = tuple(files)
        self._by_inode: dict[tuple[int, int], list[OpenFile]] = {}
        for file in self.files:
            self._by_inode.setdefault(file.look.inode, []).append(file)
        self._sorted: dict[tuple[int, int], list[OpenFile]] = {}

    def with_inode(self, device: int, inode: int) -> Sequence[OpenFile]:
        """Return the files of one inode; there are many for an anonymous one, and for a pipe."""
        return self._by_inode.get((device, inode), ())

    def find(self, device: int, inode: int, order: Callable[[int], int]) -> OpenFile | None:
        """Return the file of an inode for which `order` says 0; it says 1 and 2 as kcmp(2) does.

        All anonymous files are of one inode, so they are sorted, once, and searched: log n system calls.
        """
        key = (device, inode)
        if key not in self._sorted:
            self._sorted[key] = sorted(self.with_inode(*key), key=_by_kcmp)
        files = self._sorted[key]
        at = bisect.bisect_left(files, 0, key=lambda file: _SIGN[order(file.fd)])
        return files[at] if at < len(files) and order(files[at].fd) == 0 else None
