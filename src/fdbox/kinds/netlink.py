"""netlink-socket: a socket that hears of, or asks for, the kernel's objects (netlink(7)).

/ { compatible = "fdbox,netlink-socket-v1";
    file@0 {
        type; protocol; port; groups = <number ...>;     SOCK_*; NETLINK_*; its own port id; multicast groups
        netlink-... ; ...                               options, and what all sockets have (kinds/_sockets.py)
    };
};
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from fdbox.errors import FdtError
from fdbox.kinds import _sockets
from fdbox.kinds._sockets import Option
from fdbox.kinds.base import Kind, Ordinary
from fdbox.kinds.freight import Made
from fdbox.linux import sock
from fdbox.linux.fd import OwnedFd
from fdbox.model import Description

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.model import Carriage

# include/uapi/linux/netlink.h
_SOL_NETLINK, _ADD_MEMBERSHIP, _LIST_MEMBERSHIPS = 270, 1, 9
_GENERIC = 16
_U32 = struct.Struct("=I")
_MOST_GROUPS = 4096


def _netlink(name: str, number: int) -> Option:
    return Option(f"netlink-{name}", _SOL_NETLINK, number)


_OPTIONS: tuple[Option, ...] = (
    _netlink("pktinfo", 3),
    _netlink("broadcast-error", 4),
    _netlink("no-enobufs", 5),
    _netlink("listen-all-nsid", 8),
    _netlink("cap-ack", 10),
    _netlink("ext-ack", 11),
    _netlink("get-strict-chk", 12),
    *_sockets.EVERY,
)


class NetlinkSocket(Ordinary):
    """A netlink socket."""

    name = "netlink-socket"
    about = "a netlink socket"
    keeps = "protocol, port id, multicast groups, options, filter, O_NONBLOCK"
    loses = (
        "messages that were not read, dumps that go on; its port id, if somebody has that; one in groups of generic netlink, "
        "whose numbers are another kernel's, is refused"
    )
    compatible = "fdbox,netlink-socket-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return seen.family is not None and seen.family.domain == socket.AF_NETLINK

    def describe(self, seen: Look) -> Description:
        """Return its protocol's number."""
        protocol = None if seen.family is None else seen.family.protocol
        return Description(self.name, None, f"NETLINK protocol {protocol}")

    def obstacle(self, seen: Look) -> Carriage | None:
        """Return what `_sockets` says."""
        return _sockets.obstacle(seen)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write it down."""
        with sock.borrow(file.fd) as lent:
            groups = list(_groups(lent))
            if groups and lent.proto == _GENERIC:
                raise file.refuse(
                    "it is in groups of generic netlink, whose numbers are given anew at each boot",
                    "let its program look the groups up again, in a new socket",
                )
            node.set_u32("type", int(lent.type))
            node.set_u32("protocol", lent.proto)
            node.set_u32("port", lent.getsockname()[0])
            node.set_u32s("groups", groups)
            _sockets.write(file, lent, node, _OPTIONS)
            waiting = sock.receive_memory(lent)
        if waiting:
            node.set_texts("lost", [f"messages that were not read ({waiting} bytes of memory)"])

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return it, bound, and in its groups again."""
        groups = node.u32s("groups")
        if (
            node.u32("type") not in (socket.SOCK_RAW, socket.SOCK_DGRAM)
            or len(groups) > _MOST_GROUPS
        ):
            raise FdtError(f"{node.name} has a type or groups that no netlink socket has")
        made = socket.socket(
            socket.AF_NETLINK, node.u32("type") | socket.SOCK_CLOEXEC, node.u32("protocol")
        )
        with contextlib.ExitStack() as undo:
            undo.callback(made.close)
            lost = list(_bind(made, node.u32("port")))
            lost += _sockets.apply(made, node, _OPTIONS)
            for group in groups:
                made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _U32.pack(group))
            lost += _sockets.finish(made, node)
            undo.pop_all()
        return Made(OwnedFd(made.detach()), tuple(lost))


def _groups(lent: socket.socket) -> Iterator[int]:
    raw = lent.getsockopt(_SOL_NETLINK, _LIST_MEMBERSHIPS, _MOST_GROUPS // 8)
    for at, (word,) in enumerate(_U32.iter_unpack(raw[: len(raw) // 4 * 4])):
        yield from (at * 32 + bit + 1 for bit in range(32) if word >> bit & 1)


def _bind(made: socket.socket, port: int) -> Iterator[str]:
    """Give a socket its port id, if nobody has it; another one if somebody does."""
    if not port:
        return
    try:
        made.bind((port, 0))
    except OSError as error:
        made.bind((0, 0))
        yield f"its port id {port}: {error.strerror}"


KINDS: tuple[Kind, ...] = (NetlinkSocket(),)
