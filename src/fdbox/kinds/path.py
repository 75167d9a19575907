"""path: an O_PATH descriptor, which says where a file is and opens nothing; and what is served by a process.

/ { compatible = "fdbox,path-v1"; file@0 { flags; path; device; inode; birth; type; }; };
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from fdbox.kinds import _paths
from fdbox.kinds.base import Kind, Ordinary, Uncarried
from fdbox.linux import memfd, paths
from fdbox.model import Description

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight, Made
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd

_KEPT_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW


class Path(Ordinary):
    """A path."""

    name = "path"
    about = "a path (O_PATH), to a file of any type"
    keeps = "the path, checked to lead to the same file"
    compatible = "fdbox,path-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one, of a file system that no process serves."""
        return seen.is_path and paths.filesystem(seen.fd) != paths.FUSE

    def describe(self, seen: Look) -> Description:
        """Return where it leads."""
        return Description(self.name, None, seen.label)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down where it leads."""
        node.set_u32("flags", file.look.flags & _KEPT_FLAGS)
        _paths.write(file, node)

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return it again; a descriptor of a symbolic link is of the link."""
        found = _paths.find(node, node.u32("flags") & os.O_DIRECTORY)
        if node.u32("flags") & os.O_NOFOLLOW or stat.S_ISLNK(node.u32("type")):
            return found
        with found:
            return memfd.reopen(found.fileno(), os.O_PATH | node.u32("flags") & os.O_DIRECTORY)


def _is_served(seen: Look) -> bool:
    """Return whether a process serves the file: it is asked for this, and may never answer. glance() has left that to a thread."""
    mode = seen.status.st_mode
    if not (seen.is_path or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return False
    return seen.link.startswith("/") and paths.filesystem(seen.fd) == paths.FUSE


KINDS: tuple[Kind, ...] = (
    Path(),
    Uncarried(
        "fuse-file",
        "a file or directory of a file system in user space",
        _is_served,
        "its file system is a process, which does not outlive its kernel",
    ),
)
