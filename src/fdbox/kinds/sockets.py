"""Sockets of other families and protocols: refused, each with its reason."""

from __future__ import annotations

import socket
import stat
from typing import TYPE_CHECKING

from fdbox.kinds import _inet
from fdbox.kinds.base import Kind, Uncarried

if TYPE_CHECKING:
    from fdbox.kinds.look import Look

_MPTCP = 262
_SCTP = 132
_PROTOCOLS = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, _MPTCP, _SCTP)
_NAMED = (*_inet.DOMAINS, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK)


def _domain(seen: Look, *domains: int) -> bool:
    return seen.family is not None and seen.family.domain in domains


def _inet_protocol(seen: Look, protocol: int) -> bool:
    return (
        seen.family is not None
        and seen.family.domain in _inet.DOMAINS
        and seen.family.type != socket.SOCK_RAW
        and seen.family.protocol == protocol
    )


def _is_raw(seen: Look) -> bool:
    """Return whether it is a raw or ping socket, or of a protocol that has no kind of its own."""
    if seen.family is None or seen.family.domain not in _inet.DOMAINS:
        return False
    return seen.family.type == socket.SOCK_RAW or seen.family.protocol not in _PROTOCOLS


def _is_other(seen: Look) -> bool:
    return stat.S_ISSOCK(seen.status.st_mode) and not seen.is_path and not _domain(seen, *_NAMED)


KINDS: tuple[Kind, ...] = (
    Uncarried(
        "packet-socket",
        "a packet socket",
        lambda seen: _domain(seen, socket.AF_PACKET),
        "its memberships, rings and fanout groups cannot be read",
        "open it again",
    ),
    Uncarried(
        "vsock-socket",
        "a socket to or from a virtual machine",
        lambda seen: _domain(seen, socket.AF_VSOCK),
        "its other end is a machine or a hypervisor that is connected to this kernel",
        "open it again",
    ),
    Uncarried(
        "sctp-socket",
        "an SCTP socket",
        lambda seen: _inet_protocol(seen, _SCTP),
        "its associations and addresses are with this kernel",
        "open it again",
    ),
    Uncarried(
        "mptcp-socket",
        "a Multipath TCP socket",
        lambda seen: _inet_protocol(seen, _MPTCP),
        "its paths and keys are with this kernel",
        "listen with TCP, or open it again",
    ),
    Uncarried(
        "raw-socket",
        "a raw or ping socket",
        _is_raw,
        "its filters and what it answers to cannot be read",
        "open it again",
    ),
    Uncarried(
        "other-socket",
        "a socket of another family",
        _is_other,
        "fdbox does not know what it is made of",
        "open it again",
    ),
)
