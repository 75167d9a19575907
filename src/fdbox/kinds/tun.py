"""tun: the other end of a network interface, by the name of that (/dev/net/tun).

/ { compatible = "fdbox,tun-v1";
    file@0 {
        flags;
        interface; tun-flags; sndbuf; header; uid; gid;     if it has one; 0xffffffff: nobody
    };
};
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fdbox.errors import FdtError, KernelError
from fdbox.kinds.base import Kind, Ordinary
from fdbox.linux import memfd, paths, tun
from fdbox.linux.tun import Interface

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight, Made
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd

_KEPT_FLAGS = os.O_ACCMODE | os.O_NONBLOCK
_LONGEST_NAME = 15  # IFNAMSIZ - 1
_MOST = (1 << 31) - 1
_BARE = "addresses, routes and link state of its interface {name!r}: set them again"


class Tun(Ordinary):
    """/dev/net/tun."""

    name = "tun"
    about = "a TUN or TAP interface's other end"
    keeps = "the interface's name, flags, owner, send buffer, header size; O_NONBLOCK"
    loses = "addresses, routes and link state of the interface; packets that were not read; filters, offloads"
    compatible = "fdbox,tun-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return seen.status.st_rdev == tun.DEVICE and not seen.is_path

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down its interface."""
        node.set_u32("flags", file.look.flags & _KEPT_FLAGS)
        try:
            found = tun.inspect(file.fd)
        except KernelError as error:
            raise file.refuse(error.message, error.remedy) from error
        if found is None:
            return
        node.set_text("interface", found.name)
        node.set_u32("tun-flags", found.flags)
        node.set_u32("sndbuf", found.sndbuf)
        node.set_u32("header", found.header)
        node.set_u32("uid", found.uid)
        node.set_u32("gid", found.gid)
        node.set_texts("lost", [_BARE.format(name=found.name)])

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return it, with an interface of the same name."""
        flags = node.u32("flags") & _KEPT_FLAGS
        wanted = _interface(node) if node.has("interface") else None
        with paths.find(tun.PATH) as found:
            if os.fstat(found.fileno()).st_rdev != tun.DEVICE:
                raise KernelError(f"{tun.PATH} is not the device", remedy="mount devtmpfs at /dev")
            made = memfd.reopen(found.fileno(), flags)
        try:
            if wanted is not None:
                tun.attach(made.fileno(), wanted)
        except BaseException:
            made.close()
            raise
        return made


def _interface(node: Node) -> Interface:
    found = Interface(
        node.text("interface"),
        node.u32("tun-flags"),
        node.u32("sndbuf"),
        node.u32("header"),
        node.u32("uid"),
        node.u32("gid"),
    )
    if not 1 <= len(found.name.encode()) <= _LONGEST_NAME or "%" in found.name:
        raise FdtError(f"{node.name} has a name that no interface has")
    if max(found.sndbuf, found.header) > _MOST or found.flags & ~(tun.FLAGS | tun.PERSIST):
        raise FdtError(f"{node.name} has flags or sizes that no interface has")
    return found


KINDS: tuple[Kind, ...] = (Tun(),)
