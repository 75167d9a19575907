"""inotify: watches of files and directories, by their paths (inotify(7)).

    / { compatible = "fdbox,inotify-v1";
        file@0 {
            flags;
            watch@0 { number; events; path; device; inode; birth; type; };      number: the watch descriptor
        };
    };

The kernel tells the inode and a file handle of what is watched; the handle leads to a path.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fdbox.errors import FdtError, KernelError
from fdbox.kinds import _paths
from fdbox.kinds.base import Kind, Ordinary, anonymous, numbered
from fdbox.kinds.freight import Made
from fdbox.linux import inotify
from fdbox.linux.fd import queued

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd

#: what inotify_add_watch(2) takes; the kernel's own bits are left out
_MASK = 0x00000FFF | 0x01000000 | 0x02000000 | 0x04000000 | 0x80000000


class Inotify(Ordinary):
    """Watches."""

    name = "inotify"
    about = "watches of files and directories"
    keeps = "what is watched, by path, checked to be the same file; masks, watch descriptors, O_NONBLOCK"
    loses = "events that were not read, and what happens between the kernels"
    compatible = "fdbox,inotify-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return anonymous("inotify")(seen)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down every watch, and how much was not read."""
        node.set_u32("flags", file.look.flags & os.O_NONBLOCK)
        for index, watch in enumerate(inotify.watches(file.fd)):
            child = node.add(f"watch@{index}")
            child.set_u32("number", watch.number)
            child.set_u32("events", watch.mask & _MASK)
            _paths.write_by_handle(file, watch.file, child, f"its watch {watch.number}")
        if waiting := queued(file.fd):
            node.set_texts("lost", [f"events that were not read ({waiting} bytes)"])

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return one with the same watches; one that cannot be is told, and the others go on."""
        made = inotify.create(node.u32("flags") & os.O_NONBLOCK)
        try:
            lost = tuple(_watch_again(made.fileno(), node))
        except BaseException:
            made.close()
            raise
        return Made(made, lost)


def _watch_again(made: int, node: Node) -> Iterator[str]:
    for child in numbered(node, "watch"):
        number, mask = child.u32("number"), child.u32("events") & _MASK
        if not 0 < number <= inotify.MAX_WATCH:
            raise FdtError(f"{child.name} has a number that no watch has")
        try:
            with _paths.find(child) as found:
                inotify.add(made, f"/proc/self/fd/{found.fileno()}", mask, number)
        except KernelError as error:
            yield f"its watch {number} of {child.path('path')}: {error.message}"


KINDS: tuple[Kind, ...] = (Inotify(),)
