"""signalfd: signals as something to read (signalfd(2)).

/ { compatible = "fdbox,signalfd-v1"; file@0 { flags; mask; }; };      mask: bit 0 is signal 1
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fdbox.kinds.base import Kind, Ordinary, anonymous
from fdbox.linux import signalfd

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight, Made
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd


class Signalfd(Ordinary):
    """Signals to read."""

    name = "signalfd"
    about = "signals to read"
    keeps = "the mask, O_NONBLOCK"
    loses = "pending signals: they belong to a process, as the signals that it blocks do"
    compatible = "fdbox,signalfd-v1"
    is_portable = True

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return anonymous("signalfd")(seen)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down the mask."""
        node.set_u32("flags", file.look.flags & os.O_NONBLOCK)
        node.set_u64("mask", signalfd.mask_of(file.fd))

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return one with the same mask."""
        return signalfd.create(node.u64("mask"), node.u32("flags") & os.O_NONBLOCK)


KINDS: tuple[Kind, ...] = (Signalfd(),)
