"""Sockets that are refused, each with its reason."""

from __future__ import annotations

import socket

import pytest

from fdbox.errors import CannotCarry
from fdbox.linux.fd import OwnedFd
from tests.kinds.conformance import World, kinds_of

MADE = {
    "packet-socket": (socket.AF_PACKET, socket.SOCK_RAW, 0),
    "vsock-socket": (socket.AF_VSOCK, socket.SOCK_STREAM, 0),
    "sctp-socket": (socket.AF_INET, socket.SOCK_STREAM, 132),
    "mptcp-socket": (socket.AF_INET, socket.SOCK_STREAM, 262),
    "raw-socket": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "other-socket": (socket.AF_ALG, socket.SOCK_SEQPACKET, 0),
}


@pytest.mark.root
@pytest.mark.parametrize("kind", MADE)
def test_it_is_refused_with_its_reason(world: World, kind: str) -> None:
    try:
        made = socket.socket(*MADE[kind])
    except OSError as error:
        pytest.skip(f"this kernel has none: {error}")
    entries = {"it": OwnedFd(made.detach())}
    world.made.append(entries)
    assert kinds_of(entries["it"].fileno()) == [kind]
    with pytest.raises(CannotCarry, match=f"'it'.*{kind}"):
        world.seal(entries)
