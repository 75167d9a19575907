"""The kinds that nothing carries yet: recognised, so that `put` can name what `seal` is going to refuse."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdbox.linux import memfd
from fdbox.model import Carriage, Description

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdbox.kinds.base import Look

_RESTART_ONLY = "it outlives its process in the box; remove it before an update of the kernel"


@dataclass(frozen=True, slots=True)
class Uncarried:
    """A kind with a name and a reason."""

    name: str
    test: Callable[[Look], bool]
    obstacle: str
    remedy: str = _RESTART_ONLY

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return self.test(seen)

    def describe(self, seen: Look) -> Description:
        """Return its name; the size where the file has bytes."""
        size = seen.status.st_size if stat.S_ISREG(seen.status.st_mode) else None
        return Description(self.name, size, seen.link)

    def carriage(self, seen: Look, carrier: Carriage) -> Carriage:
        """Return that nothing carries it."""
        return Carriage(None, self.obstacle, self.remedy)


def _mode(is_type: Callable[[int], bool]) -> Callable[[Look], bool]:
    return lambda seen: is_type(seen.status.st_mode) and not _is_path(seen)


def _anon(name: str) -> Callable[[Look], bool]:
    return lambda seen: seen.link in (f"anon_inode:[{name}]", f"anon_inode:{name}")


def _is_path(seen: Look) -> bool:
    return bool(seen.flags & os.O_PATH)


def _is_hugetlb_memfd(seen: Look) -> bool:
    return stat.S_ISREG(seen.status.st_mode) and not _is_path(seen) and memfd.is_hugetlb(seen.fd)


def _is_tmpfs_file(seen: Look) -> bool:
    return (
        stat.S_ISREG(seen.status.st_mode)
        and not _is_path(seen)
        and seen.status.st_dev != memfd.device()
        and memfd.is_shmem(seen.fd)
    )


def _is_regular_file(seen: Look) -> bool:
    if not stat.S_ISREG(seen.status.st_mode) or _is_path(seen):
        return False
    return not memfd.is_shmem(seen.fd) and not memfd.is_hugetlb(seen.fd)


_STATE = "fdbox does not save its state yet"
_PROCESS = "it stands for what ends with this kernel"

OTHERS: tuple[Uncarried, ...] = (
    Uncarried("path", _is_path, _STATE),
    Uncarried(
        "hugetlb-memfd",
        _is_hugetlb_memfd,
        "the kernel refuses hugetlbfs",
        "use an ordinary memfd with transparent huge pages, as `fdbox memory` does",
    ),
    Uncarried(
        "tmpfs-file", _is_tmpfs_file, _STATE, "use a memfd: it has no name that could be in the way"
    ),
    Uncarried("regular-file", _is_regular_file, _STATE),
    Uncarried("directory", _mode(stat.S_ISDIR), _STATE),
    Uncarried("pipe", _mode(stat.S_ISFIFO), _STATE),
    Uncarried("socket", _mode(stat.S_ISSOCK), _STATE),
    Uncarried("character-device", _mode(stat.S_ISCHR), _STATE),
    Uncarried("block-device", _mode(stat.S_ISBLK), _STATE),
    Uncarried("eventfd", _anon("eventfd"), _STATE),
    Uncarried("timerfd", _anon("timerfd"), _STATE),
    Uncarried("signalfd", _anon("signalfd"), _STATE),
    Uncarried("epoll", _anon("eventpoll"), _STATE),
    Uncarried("inotify", _anon("inotify"), _STATE),
    Uncarried("fanotify", _anon("fanotify"), _STATE),
    Uncarried("io-uring", _anon("io_uring"), _PROCESS),
    Uncarried(
        "pidfd",
        lambda seen: _anon("pidfd")(seen) or seen.link.startswith("pidfd:"),
        "no process outlives its kernel",
    ),
)

#: What none of the above is.
UNKNOWN = Uncarried("unknown", lambda _: False, "fdbox does not know this kind of descriptor")
