"""directory: by its path.

    / { compatible = "fdbox,directory-v1"; file@0 { flags; position; path; device; inode; birth; type; }; };

`position` is the file system's own: where the next readdir(3) goes on.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from fdbox.errors import FdtError
from fdbox.kinds import _paths
from fdbox.kinds.base import Kind, Ordinary
from fdbox.linux import paths
from fdbox.model import Description

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight, Made
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd

_KEPT_FLAGS = os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOATIME
_MAX_POSITION = (1 << 63) - 1


class Directory(Ordinary):
    """A directory."""

    name = "directory"
    about = "a directory"
    keeps = "path, checked to lead to the same directory; flags, position"
    loses = "locks"
    compatible = "fdbox,directory-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one, of a file system that no process serves."""
        if not stat.S_ISDIR(seen.status.st_mode) or seen.is_path:
            return False
        return paths.filesystem(seen.fd) != paths.FUSE

    def describe(self, seen: Look) -> Description:
        """Return its path."""
        return Description(self.name, None, seen.label)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down where it is."""
        node.set_u32("flags", file.look.flags & _KEPT_FLAGS)
        node.set_u64("position", os.lseek(file.fd, 0, os.SEEK_CUR))
        _paths.write(file, node)

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return it, opened again."""
        position = node.u64("position")
        if node.u32("type") != stat.S_IFDIR or position > _MAX_POSITION:
            raise FdtError(f"{node.name} is no directory")
        fd = _paths.open_again(node, node.u32("flags") & _KEPT_FLAGS)
        try:
            os.lseek(fd.fileno(), position, os.SEEK_SET)
        except BaseException:
            fd.close()
            raise
        return fd


KINDS: tuple[Kind, ...] = (Directory(),)
