"""memfd: anonymous memory, which the kernel carries with its pages where they are.

The component is as `_memory.py` has it, and in each `memory@N` the `name`. What has no name of its own lies on the same
mount inside the kernel, and is the same: shared anonymous mappings and System V segments (/proc/PID/map_files).
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from fdbox.kinds import _dense, _memory
from fdbox.kinds._memory import Memories
from fdbox.linux import memfd, paths
from fdbox.model import Description

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds._memory import Group
    from fdbox.kinds.base import Kind
    from fdbox.kinds.freight import Arrivals, Freight, Made
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd


def label(link: str) -> str:
    """Return a memfd's name for people: bytes that are no UTF-8 become U+FFFD."""
    return paths.shown(memfd.name_in(link))


def write_name(file: OpenFile, node: Node) -> tuple[str, ...]:
    """Write down the name that a memfd is to have; return what is lost of it.

    What came from the last kernel is known by its label, which can be longer than a memfd's name.
    """
    found = file.description.label
    name = found.encode()[: memfd.MAX_NAME].decode(errors="ignore")
    node.set_text("name", name)
    exact = memfd.name_in(file.look.link)
    return (f"its name is not UTF-8: it becomes {name!r}",) if exact not in ("", found) else ()


class Memfd(Memories):
    """Anonymous memory (memfd_create(2)), without hugetlb."""

    name = "memfd"
    about = "anonymous memory: memfds, shared anonymous mappings, System V segments"
    keeps = (
        "bytes, holes, size, seals, name, mode, owner, extended attributes, and of each open file "
        "description access mode, flags, position"
    )
    loses = "file locks, times, security labels, the key of a System V segment"
    compatible = "fdbox,memfd-v1"
    is_portable = True

    def recognise(self, seen: Look) -> bool:
        """Return whether it is a memfd of ordinary pages."""
        # All files of that mount take seals: to ask would be one system call more for each `put`.
        return (
            seen.status.st_dev == memfd.device()
            and stat.S_ISREG(seen.status.st_mode)
            and not seen.is_path
        )

    def describe(self, seen: Look) -> Description:
        """Return its size, and the name that it was made with."""
        return Description(self.name, seen.status.st_size, label(seen.link))

    def send(self, group: Group, node: Node, freight: Freight) -> tuple[str, ...]:
        """Send the memory, or a copy; and its name."""
        lost = write_name(group.first, node)
        if not _memory.send_in_place(group.first, node, freight):
            _dense.send(group.first, node, freight)
        return lost

    def make(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return what came itself, or a new memfd from the copy."""
        if not _memory.is_copy(node):
            return _memory.take_in_place(node, arrivals)
        return _memory.fill(node, arrivals, memfd.create(node.text("name")))


KINDS: tuple[Kind, ...] = (Memfd(),)
