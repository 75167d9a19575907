from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from fdbox.linux import multicast
from fdbox.linux.fd import OwnedFd
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.kinds.conformance import World

SOCKET, IP = socket.SOL_SOCKET, socket.IPPROTO_IP
GROUP = "239.1.2.3"


def owned(sock: socket.socket) -> OwnedFd:
    return OwnedFd(sock.detach())


def bound(address: str, *options: tuple[int, int, int]) -> Callable[[Path], Entries]:
    def make(folder: Path) -> Entries:
        domain = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(domain, socket.SOCK_DGRAM)
        for option in options:
            sock.setsockopt(*option)
        sock.bind((address, 0))
        (folder / "port").write_text(str(sock.getsockname()[1]))
        return {"socket": owned(sock)}

    return make


OPTIONS = (
    (SOCKET, socket.SO_BROADCAST, 1),
    (SOCKET, socket.SO_RCVBUF, 40000),
    (IP, socket.IP_TOS, 8),
    (IP, socket.IP_MULTICAST_TTL, 9),
    (IP, 8, 1),  # IP_PKTINFO
)


def connected(folder: Path) -> Entries:
    entries = bound("127.0.0.1")(folder)
    with socket.socket(fileno=os.dup(entries["socket"].fileno())) as sock:
        sock.connect(("127.0.0.1", 9))
    return entries


def in_groups(folder: Path) -> Entries:
    entries = bound("0.0.0.0")(folder)
    with socket.socket(fileno=os.dup(entries["socket"].fileno())) as sock:
        request = struct.pack("=4sIi", socket.inet_aton(GROUP), 0, socket.if_nametoindex("lo"))
        sock.setsockopt(IP, socket.IP_ADD_MEMBERSHIP, request)
        # struct ip_mreq_source { imr_multiaddr, imr_interface, imr_sourceaddr }
        some = b"".join(map(socket.inet_aton, ("239.1.2.4", "127.0.0.1", "192.0.2.1")))
        sock.setsockopt(IP, 39, some)  # IP_ADD_SOURCE_MEMBERSHIP
    return entries


def in_group_6(folder: Path) -> Entries:
    entries = bound("::")(folder)
    with socket.socket(fileno=os.dup(entries["socket"].fileno())) as sock:
        group = socket.inet_pton(socket.AF_INET6, "ff15::1234")
        request = struct.pack("=16sI", group, socket.if_nametoindex("lo"))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    return entries


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    with socket.socket(fileno=os.dup(fds["socket"])) as sock:
        name = sock.getsockname()
        groups = sorted(
            [one.interface, one.group.hex(), one.mode, [source.hex() for source in one.sources]]
            for one in multicast.memberships(sock)
        )
        found = [
            [sock.getsockopt(level, number) for level, number, _ in OPTIONS],
            name[0],
            str(name[1]) == (folder / "port").read_text(),
            groups,
        ]
        try:
            found.append(list(sock.getpeername()))
        except OSError:
            found.append(receive(sock))
        return found


def receive(sock: socket.socket) -> str:
    address, port = sock.getsockname()[:2]
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    with socket.socket(sock.family, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"datagram", (target, port))
        sock.settimeout(5)
        return sock.recv(99).decode()


def disturb(fds: Mapping[str, int]) -> None:
    with socket.socket(fileno=os.dup(fds["socket"])) as sock:
        sock.setsockopt(IP, socket.IP_TOS, 4)


def sample(name: str, make: Callable[[Path], Entries]) -> Sample:
    return Sample(f"udp {name}", {"socket": "udp-socket"}, make, observe, disturb)


SAMPLES = [
    sample("bound", bound("127.0.0.1")),
    sample("with options", bound("127.0.0.1", *OPTIONS)),
    sample("v6", bound("::1")),
    sample("connected", connected),
    sample("in multicast groups", in_groups),
    sample("in a multicast group v6", in_group_6),
]


def test_datagrams_that_were_not_read_are_told(world: World) -> None:
    entries = world.make(SAMPLES[0])
    port = int((world.folder / "own" / "port").read_text())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"unread", ("127.0.0.1", port))
    world.jump(SAMPLES[0], entries)
    arrived, (loss,) = world.arrive()
    assert list(arrived) == ["socket"]
    assert "datagrams that were not read" in loss.reason
