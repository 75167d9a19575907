"""eventfd: a counter (eventfd(2)).

/ { compatible = "fdbox,eventfd-v1"; file@0 { flags; count; semaphore; }; };
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fdbox.errors import FdtError
from fdbox.kinds.base import Kind, Ordinary, anonymous
from fdbox.linux import fdinfo
from fdbox.linux.fd import OwnedFd

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight, Made
    from fdbox.kinds.look import Look, OpenFile

_MAX = (1 << 64) - 2  # what eventfd_write() lets the counter become


class Eventfd(Ordinary):
    """A counter."""

    name = "eventfd"
    about = "a counter"
    keeps = "the counter, semaphore mode, O_NONBLOCK"
    compatible = "fdbox,eventfd-v1"
    is_portable = True

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return anonymous("eventfd")(seen)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down what fdinfo tells: reading the counter would reset it."""
        told = fdinfo.read(file.fd)
        count = int(told.line("eventfd-count"), 16)
        if count > _MAX:
            raise file.refuse("the kernel let its counter overflow", "read it first")
        node.set_u32("flags", file.look.flags & os.O_NONBLOCK)
        node.set_u64("count", count)
        node.set_u32("semaphore", int(told.line("eventfd-semaphore")))

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return a counter that stands where it stood."""
        count, semaphore = node.u64("count"), node.u32("semaphore")
        if count > _MAX:
            raise FdtError(f"{node.name} has a counter that no eventfd has")
        flags = os.EFD_CLOEXEC | (node.u32("flags") & os.O_NONBLOCK)
        made = OwnedFd(os.eventfd(0, flags | (os.EFD_SEMAPHORE if semaphore else 0)))
        if count:
            os.eventfd_write(made.fileno(), count)
        return made


KINDS: tuple[Kind, ...] = (Eventfd(),)
