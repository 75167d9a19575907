"""udp-socket: a UDP socket (udp(7)).

/ { compatible = "fdbox,udp-socket-v1";
    file@0 {
        udp-... ;                                       options
        peer@0 { address; port; interface; };           if it is connected
        membership@0 { interface; address; mode; data; };   a multicast group; `data` are the sources, one behind the other
        ...                                             and what all internet sockets have (kinds/_inet.py)
    };
};
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import TYPE_CHECKING

from fdbox.errors import FdtError
from fdbox.kinds import _inet, _sockets
from fdbox.kinds._sockets import Option
from fdbox.kinds.base import Kind, Ordinary, numbered
from fdbox.kinds.freight import Made
from fdbox.linux import multicast, sock
from fdbox.linux.fd import OwnedFd
from fdbox.linux.multicast import Membership
from fdbox.model import Description

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.model import Carriage

_ENCAP = 100  # UDP_ENCAP, include/uapi/linux/udp.h


def _udp(name: str, number: int) -> Option:
    return Option(f"udp-{name}", socket.IPPROTO_UDP, number)


_OPTIONS: tuple[Option, ...] = (
    _udp("no-check6-tx", 101),
    _udp("no-check6-rx", 102),
    _udp("segment", 103),
    _udp("gro", 104),
)


class UdpSocket(Ordinary):
    """A UDP socket."""

    name = "udp-socket"
    about = "a UDP socket"
    keeps = "address, port, peer, multicast groups with their sources, options, filter, O_NONBLOCK"
    loses = "datagrams that were not read; corked data; eBPF programs of its SO_REUSEPORT group"
    compatible = "fdbox,udp-socket-v1"
    is_portable = True

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return (
            seen.family is not None
            and seen.family.domain in _inet.DOMAINS
            and seen.family.type == socket.SOCK_DGRAM
            and seen.family.protocol in (0, socket.IPPROTO_UDP)
        )

    def describe(self, seen: Look) -> Description:
        """Return its address."""
        return Description(self.name, None, _inet.label(seen))

    def obstacle(self, seen: Look) -> Carriage | None:
        """Return what `_sockets` says."""
        return _sockets.obstacle(seen)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write it down."""
        with sock.borrow(file.fd) as lent:
            if lent.getsockopt(socket.IPPROTO_UDP, _ENCAP):
                raise file.refuse("it carries another protocol (UDP_ENCAP)", "close the tunnel")
            _inet.write(file, lent, node, _OPTIONS)
            if (peer := _peer(lent)) is not None:
                _inet.write_address(node.add("peer@0"), peer)
            for number, one in enumerate(multicast.memberships(lent)):
                _write_membership(node.add(f"membership@{number}"), one)
            waiting = sock.receive_memory(lent)
        if waiting:
            node.set_texts("lost", [f"datagrams that were not read ({waiting} bytes of memory)"])

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return it, bound, connected, and in its groups again."""
        made = _inet.create(node, socket.SOCK_DGRAM)
        with contextlib.ExitStack() as undo:
            undo.callback(made.close)
            lost = list(_inet.bind(made, node, _OPTIONS))
            lost += _join(made, node)
            lost += _connect(made, node)
            lost += _sockets.finish(made, node)
            undo.pop_all()
        return Made(OwnedFd(made.detach()), tuple(lost))


def _peer(lent: socket.socket) -> tuple[str, int] | tuple[str, int, int, int] | None:
    try:
        found: tuple[str, int] | tuple[str, int, int, int] = lent.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return None
        raise
    return found


def _write_membership(node: Node, one: Membership) -> None:
    node.set_text("interface", one.interface)
    node.set_data("address", one.group)
    node.set_u32("mode", one.mode)
    node.set_data("data", b"".join(one.sources))


def _join(made: socket.socket, node: Node) -> Iterator[str]:
    for child in numbered(node, "membership"):
        group, sources = child.data("address"), child.data("data")
        if len(group) not in (4, 16) or len(sources) % len(group):
            raise FdtError(f"{child.name} is a group that no socket is in")
        parts = tuple(sources[at : at + len(group)] for at in range(0, len(sources), len(group)))
        wanted = Membership(child.text("interface"), group, child.u32("mode"), parts)
        try:
            multicast.join(made, wanted)
        except (OSError, struct.error) as error:
            yield f"a multicast group on {wanted.interface!r}: {error}"


def _connect(made: socket.socket, node: Node) -> Iterator[str]:
    for child in numbered(node, "peer"):
        name = _inet.address(child, made.family)
        try:
            made.connect(name)
        except OSError as error:
            yield f"its peer {_inet.printable(name)}: {error.strerror}"


KINDS: tuple[Kind, ...] = (UdpSocket(),)
