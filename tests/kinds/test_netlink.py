from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry
from fdbox.linux.fd import OwnedFd
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.kinds.conformance import World

ROUTE, UEVENT, GENERIC = 0, 15, 16
LEVEL, ADD, LIST, EXT_ACK = 270, 1, 9, 11
PORT = 0x7FDB0001


def made(
    protocol: int, *groups: int, port: int = 0, bound: bool = True
) -> Callable[[Path], Entries]:
    def make(folder: Path) -> Entries:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        if bound:
            sock.bind((port, 0))
        for group in groups:
            sock.setsockopt(LEVEL, ADD, group)
        sock.setsockopt(LEVEL, EXT_ACK, 1)
        return {"socket": OwnedFd(sock.detach())}

    return make


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    with socket.socket(fileno=os.dup(fds["socket"])) as sock:
        groups = sock.getsockopt(LEVEL, LIST, 64).rstrip(b"\0").hex()
        (port,) = sock.getsockname()[:1]
        return [
            sock.proto,
            groups,
            port if port == PORT else bool(port),
            sock.getsockopt(LEVEL, EXT_ACK),
        ]


def disturb(fds: Mapping[str, int]) -> None:
    with socket.socket(fileno=os.dup(fds["socket"])) as sock:
        sock.setsockopt(LEVEL, EXT_ACK, 0)


def sample(name: str, make: Callable[[Path], Entries]) -> Sample:
    return Sample(f"netlink {name}", {"socket": "netlink-socket"}, make, observe, disturb)


SAMPLES = [
    sample("fresh", made(ROUTE, bound=False)),
    # of groups in which nobody says anything: what is not read is told, and has a test of its own
    sample("of routes", made(ROUTE, 27, 33, port=PORT)),
    sample("generic", made(GENERIC)),
    sample("of device events", made(UEVENT, 3)),
]


def test_a_port_id_that_somebody_has_is_told(world: World) -> None:
    world.jump(SAMPLES[1], world.make(SAMPLES[1]))
    world.made.append(made(ROUTE, port=PORT)(world.folder))
    entries, (loss,) = world.arrive()
    assert list(entries) == ["socket"]
    assert "its port id" in loss.reason


def test_messages_that_were_not_read_are_told(world: World) -> None:
    entries = world.make(SAMPLES[0])
    with socket.socket(fileno=os.dup(entries["socket"].fileno())) as sock:
        # struct nlmsghdr of RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, and struct ifinfomsg
        sock.send(struct.pack("=IHHII", 32, 18, 0x301, 1, 0) + bytes(16))
    sealed = world.seal(entries)
    assert "messages that were not read" in sealed.lost[0][1]
    sealed.thaw()


def test_groups_of_generic_netlink_are_refused(world: World) -> None:
    entries = made(GENERIC, 16)(world.folder)
    world.made.append(entries)
    with pytest.raises(CannotCarry, match="generic netlink"):
        world.seal(entries)
