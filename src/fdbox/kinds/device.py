"""device: a character device without state, by its number; and those that have state, which are refused.

/ { compatible = "fdbox,device-v1"; file@0 { flags; minor; }; };      the major number is 1
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from fdbox.errors import FdtError, KernelError
from fdbox.kinds import handed
from fdbox.kinds.base import Kind, Ordinary, Uncarried
from fdbox.linux import memfd, paths, tun

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight, Made
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd

# Documentation/admin-guide/devices.txt
_MEMORY = 1
_STATELESS = {3: "null", 5: "zero", 7: "full", 8: "random", 9: "urandom"}
_TERMINALS = (2, 3, 4, 5, *range(136, 144))
_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK


def _major(seen: Look) -> int:
    return os.major(seen.status.st_rdev)


def _is_character(seen: Look) -> bool:
    return (
        stat.S_ISCHR(seen.status.st_mode)
        and not seen.is_path
        and seen.status.st_rdev != tun.DEVICE
        and not any(kind.recognise(seen) for kind in handed.KINDS)
    )


def _is_stateless(seen: Look) -> bool:
    return _major(seen) == _MEMORY and os.minor(seen.status.st_rdev) in _STATELESS


class Device(Ordinary):
    """/dev/null and its like."""

    name = "device"
    about = "/dev/null, zero, full, random or urandom"
    keeps = "which one it is, access mode, flags"
    compatible = "fdbox,device-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return _is_character(seen) and _is_stateless(seen)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down its number."""
        node.set_u32("flags", file.look.flags & _KEPT_FLAGS)
        node.set_u32("minor", os.minor(file.look.status.st_rdev))

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return the device, opened in /dev."""
        minor, flags = node.u32("minor"), node.u32("flags") & _KEPT_FLAGS
        if minor not in _STATELESS:
            raise FdtError(f"{node.name} has a number that no device without state has")
        path = f"/dev/{_STATELESS[minor]}"
        with paths.find(path) as found:
            status = os.fstat(found.fileno())
            if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(_MEMORY, minor):
                raise KernelError(f"{path} is not the device", remedy="mount devtmpfs at /dev")
            return memfd.reopen(found.fileno(), flags)


KINDS: tuple[Kind, ...] = (
    Device(),
    Uncarried(
        "terminal",
        "a terminal, or either end of a pseudoterminal",
        lambda seen: _is_character(seen) and _major(seen) in _TERMINALS,
        "what is in its queues cannot be read without taking it, and its other end is a process",
        "let the program open it again",
    ),
    Uncarried(
        "character-device",
        "a character device with a driver's state",
        lambda seen: (
            _is_character(seen) and not _is_stateless(seen) and _major(seen) not in _TERMINALS
        ),
        "what its driver knows of it cannot be read",
        "let the program open it again",
    ),
    Uncarried(
        "block-device",
        "a block device",
        lambda seen: stat.S_ISBLK(seen.status.st_mode) and not seen.is_path,
        "its numbers may be another device's in the next kernel",
        "let the program open it again, by its name in /dev/disk",
    ),
)
