"""What TCP and UDP sockets have in common: addresses and options.

    domain; address; port; interface;      AF_*; the address as it is on the wire; of a link-local one the interface
    device-name;                           SO_BINDTODEVICE
    ip-... ; ipv6-... ;                    options, beside those that every socket has (kinds/_sockets.py)

The address may not be there yet when fdbox starts, early in the boot: it is bound all the same (IP_FREEBIND).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING

from fdbox.errors import FdtError, KernelError
from fdbox.kinds import _sockets
from fdbox.kinds._sockets import Option
from fdbox.linux import sock

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.look import Look, OpenFile

DOMAINS = (socket.AF_INET, socket.AF_INET6)
_LENGTHS = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}
_IFNAMSIZ = 16
_FREEBIND = {
    int(socket.AF_INET): (socket.IPPROTO_IP, 15),
    int(socket.AF_INET6): (socket.IPPROTO_IPV6, 78),
}


def _ip(name: str, number: int) -> Option:
    return Option(f"ip-{name}", socket.IPPROTO_IP, number)


def _ipv6(name: str, number: int) -> Option:
    return Option(f"ipv6-{name}", socket.IPPROTO_IPV6, number)


# include/uapi/linux/{in,in6}.h; what decides about bind(2) comes first
_BOTH: tuple[Option, ...] = (
    Option("so-reuseaddr", socket.SOL_SOCKET, socket.SO_REUSEADDR),
    Option("so-reuseport", socket.SOL_SOCKET, socket.SO_REUSEPORT),
    _ip("transparent", 19),
    _ip("bind-address-no-port", 24),
    _ip("local-port-range", 51),
    _ip("freebind", 15),
    _ip("tos", 1),
    _ip("ttl", 2),
    _ip("recvopts", 6),
    _ip("retopts", 7),
    _ip("pktinfo", 8),
    _ip("mtu-discover", 10),
    _ip("recverr", 11),
    _ip("recvttl", 12),
    _ip("recvtos", 13),
    _ip("recvorigdstaddr", 20),
    _ip("minttl", 21),
    _ip("checksum", 23),
    _ip("recvfragsize", 25),
    _ip("recverr-rfc4884", 26),
    _ip("multicast-ttl", 33),
    _ip("multicast-loop", 34),
    _ip("multicast-all", 49),
    _ip("unicast-if", 50),
    Option("so-incoming-cpu", socket.SOL_SOCKET, 49),
    Option("so-zerocopy", socket.SOL_SOCKET, 60),
    *_sockets.EVERY,
)
_ONLY_6: tuple[Option, ...] = (
    _ipv6("v6only", 26),
    _ipv6("transparent", 75),
    _ipv6("freebind", 78),
    _ipv6("unicast-hops", 16),
    _ipv6("multicast-if", 17),
    _ipv6("multicast-hops", 18),
    _ipv6("multicast-loop", 19),
    _ipv6("mtu-discover", 23),
    _ipv6("recverr", 25),
    _ipv6("multicast-all", 29),
    _ipv6("recverr-rfc4884", 31),
    _ipv6("recvpktinfo", 49),
    _ipv6("recvhoplimit", 51),
    _ipv6("recvhopopts", 53),
    _ipv6("recvrthdr", 56),
    _ipv6("recvdstopts", 58),
    _ipv6("recvpathmtu", 60),
    _ipv6("dontfrag", 62),
    _ipv6("recvtclass", 66),
    _ipv6("tclass", 67),
    _ipv6("autoflowlabel", 70),
    _ipv6("addr-preferences", 72),
    _ipv6("minhopcount", 73),
    _ipv6("recvorigdstaddr", 74),
    _ipv6("unicast-if", 76),
    _ipv6("recvfragsize", 77),
)


def options(domain: int) -> tuple[Option, ...]:
    """Return the options of a family, in the order in which they are set."""
    return (*_ONLY_6, *_BOTH) if domain == socket.AF_INET6 else _BOTH


def label(seen: Look) -> str:
    """Return a socket's address as people write it."""
    with sock.borrow(seen.fd) as lent:
        return printable(lent.getsockname())


def printable(name: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """Return "address:port", with an IPv6 address in brackets."""
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


# --- leaving ---------------------------------------------------------------------------------------------------------


def write(file: OpenFile, lent: socket.socket, node: Node, own: tuple[Option, ...]) -> None:
    """Write down what a socket has; `own` are the options of its protocol."""
    node.set_u32("domain", int(lent.family))
    write_address(node, lent.getsockname())
    device = lent.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _IFNAMSIZ)
    if device := device.rstrip(b"\0"):
        node.set_text("device-name", device.decode())
    _sockets.write(file, lent, node, (*options(lent.family), *own))


def write_address(node: Node, name: tuple[str, int] | tuple[str, int, int, int]) -> None:
    """Write down an address as getsockname(2) and getpeername(2) tell it."""
    node.set_data("address", ipaddress.ip_address(name[0].partition("%")[0]).packed)
    node.set_u32("port", name[1])
    if len(name) == 4 and name[3]:
        node.set_text("interface", socket.if_indextoname(name[3]))


# --- arriving --------------------------------------------------------------------------------------------------------


def create(node: Node, kind: int) -> socket.socket:
    """Return a new socket; FdtError, OSError."""
    if node.u32("domain") not in DOMAINS:
        raise FdtError(f"{node.name} has a family that no such socket has")
    return socket.socket(node.u32("domain"), kind | socket.SOCK_CLOEXEC)


def bind(made: socket.socket, node: Node, own: tuple[Option, ...]) -> tuple[str, ...]:
    """Give a socket its options and its address; return what of the options is lost. KernelError, FdtError."""
    if node.has("device-name"):
        device = node.text("device-name")
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        except OSError as error:
            raise KernelError(
                f"cannot bind it to the interface {device!r}: {error.strerror}",
                errno=error.errno or 0,
                remedy="see that the interface is there before fdbox starts",
            ) from error
    lost = _sockets.apply(made, node, (*options(made.family), *own))
    name = address(node, made.family)
    if name[1] or not ipaddress.ip_address(name[0]).is_unspecified:
        _bind_to(made, name)
    return lost


def address(node: Node, domain: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return an address that was written down, for bind(2) and connect(2); FdtError, KernelError."""
    packed, port = node.data("address"), node.u32("port")
    if len(packed) != _LENGTHS[domain] or port > 0xFFFF:
        raise FdtError(f"{node.name} has an address that its family does not have")
    text = str(ipaddress.ip_address(packed))
    if domain == socket.AF_INET:
        return text, port
    return text, port, 0, _index(node.text("interface")) if node.has("interface") else 0


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise KernelError(
            f"there is no interface {interface!r}", remedy="make it before fdbox starts"
        ) from error


def _bind_to(made: socket.socket, name: tuple[str, int] | tuple[str, int, int, int]) -> None:
    option = _FREEBIND[int(made.family)]
    before = made.getsockopt(*option)
    try:
        made.setsockopt(*option, 1)
        made.bind(name)
    except OSError as error:
        raise KernelError(
            f"cannot bind it to {printable(name)}: {error.strerror}",
            errno=error.errno or 0,
            remedy={
                errno.EADDRINUSE: "end the program that has it; start fdbox before others",
                errno.EACCES: "a port below 1024 needs CAP_NET_BIND_SERVICE",
            }.get(error.errno or 0, "see that the address is there when fdbox starts"),
        ) from error
    made.setsockopt(*option, before)
