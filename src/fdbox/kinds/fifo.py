"""fifo: a named pipe (fifo(7)): as `pipe.py` has it, and it is found again by its path.

/ { "fdbox,fifo-v1": pipe@0 { ...; path; device; inode; birth; type; }; file@0 { pipe; flags; }; };
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from fdbox.errors import FdtError
from fdbox.kinds import _paths
from fdbox.kinds.pipe import Ends, Pipe
from fdbox.model import Description

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdbox.fdt.tree import Node
    from fdbox.kinds.base import Kind
    from fdbox.kinds.look import Look, OpenFile


class Fifo(Pipe):
    """A pipe with a name."""

    name = "fifo"
    about = "a named pipe (FIFO)"
    keeps = "path, checked to lead to the same FIFO; queued bytes and packets, capacity, access modes, O_NONBLOCK"
    loses = "other processes that have it open"
    compatible = "fdbox,fifo-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        if not stat.S_ISFIFO(seen.status.st_mode) or seen.is_path:
            return False
        return seen.link.startswith("/")

    def describe(self, seen: Look) -> Description:
        """Return its path."""
        return Description(self.name, None, seen.label)

    def write_pipe(self, node: Node, files: Sequence[OpenFile]) -> None:
        """Save what is queued, and where it is."""
        super().write_pipe(node, files)
        _paths.write(files[0], node)

    def make(self, node: Node) -> Ends:
        """Return the FIFO; what another program has written into it already comes first."""
        if node.u32("type") != stat.S_IFIFO:
            raise FdtError(f"{node.name} is no FIFO")
        both = _paths.open_again(node, os.O_RDWR | os.O_NONBLOCK)
        return Ends(both, [both])


KINDS: tuple[Kind, ...] = (Fifo(),)
