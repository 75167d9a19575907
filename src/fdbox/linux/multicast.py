"""Which multicast groups a socket is in (ip(7), ipv6(7), RFC 3678)."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fdbox.linux.syscalls import last_error, libc

if TYPE_CHECKING:
    from collections.abc import Iterator

# include/uapi/linux/in.h, the same numbers at both levels
_MCAST_JOIN_GROUP, _MCAST_MSFILTER = 42, 48
_STORAGE = 128  # struct sockaddr_storage
# struct group_req { __u32 gr_interface; struct sockaddr_storage gr_group; }, aligned to 8
_REQUEST = struct.Struct(f"=I4x{_STORAGE}s")
# struct group_filter { __u32 gf_interface; struct sockaddr_storage gf_group; __u32 gf_fmode, gf_numsrc; ... gf_slist[]; }
_FILTER = struct.Struct(f"=I4x{_STORAGE}sII")
_LEVELS = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}
_MOST_SOURCES = 512
INCLUDE, EXCLUDE = 1, 0


class Membership(NamedTuple):
    """A group on an interface: addresses packed, from whom (`mode` INCLUDE) or not from whom (EXCLUDE) it hears."""

    interface: str
    group: bytes
    mode: int
    sources: tuple[bytes, ...]


def _address(packed: bytes) -> bytes:
    """Return a struct sockaddr_in or sockaddr_in6 for an address, in a sockaddr_storage."""
    if len(packed) == 4:
        raw = struct.pack("=HH4s", socket.AF_INET, 0, packed)
    else:
        raw = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, packed, 0)
    return raw.ljust(_STORAGE, b"\0")


def _packed(raw: bytes) -> bytes:
    (domain,) = struct.unpack_from("=H", raw)
    return raw[4:8] if domain == socket.AF_INET else raw[8:24]


def memberships(lent: socket.socket) -> list[Membership]:
    """Return the groups that a socket of AF_INET or AF_INET6 is in; OSError.

    The kernel does not list them: every group that the machine is in is asked for.
    """
    found = _groups_4() if lent.family == socket.AF_INET else _groups_6()
    asked = (_membership(lent, interface, group) for interface, group in found)
    return [one for one in asked if one is not None]


def _groups_4() -> Iterator[tuple[str, bytes]]:
    # "2\teth0      :     1      V3" and below it "\t\t\t\t010000E0     1 0:00000000\t\t0" (net/ipv4/igmp.c)
    interface = ""
    for line in Path("/proc/net/igmp").read_text().splitlines()[1:]:
        if line.startswith("\t"):
            yield interface, struct.pack("=I", int(line.split()[0], 16))
        else:
            interface = line.split()[1].rstrip(":")


def _groups_6() -> Iterator[tuple[str, bytes]]:
    # as in "1    lo              ff020000000000000000000000000001     1 0000000C 0" (net/ipv6/mcast.c)
    path = Path("/proc/net/igmp6")
    for line in path.read_text().splitlines() if path.exists() else ():
        _, interface, group = line.split()[:3]
        yield interface, bytes.fromhex(group)


def _membership(lent: socket.socket, interface: str, group: bytes) -> Membership | None:
    head = _FILTER.pack(socket.if_nametoindex(interface), _address(group), 0, _MOST_SOURCES)
    buffer = ctypes.create_string_buffer(head, _FILTER.size + _MOST_SOURCES * _STORAGE)
    size = ctypes.c_uint32(len(buffer))
    level = _LEVELS[socket.AddressFamily(lent.family)]
    if libc.getsockopt(lent.fileno(), level, _MCAST_MSFILTER, buffer, ctypes.byref(size)) != 0:
        error = last_error()
        if error.errno in (errno.EADDRNOTAVAIL, errno.ENOPROTOOPT):
            return None
        raise error
    _, _, mode, count = _FILTER.unpack_from(buffer.raw)
    starts = range(_FILTER.size, _FILTER.size + count * _STORAGE, _STORAGE)
    return Membership(interface, group, mode, tuple(_packed(buffer.raw[at:]) for at in starts))


def join(lent: socket.socket, wanted: Membership) -> None:
    """Enter a group; OSError ENODEV (no such interface), ENOBUFS, EADDRINUSE."""
    level = _LEVELS[socket.AddressFamily(lent.family)]
    index, group = socket.if_nametoindex(wanted.interface), _address(wanted.group)
    lent.setsockopt(level, _MCAST_JOIN_GROUP, _REQUEST.pack(index, group))
    if wanted.mode == INCLUDE or wanted.sources:
        head = _FILTER.pack(index, group, wanted.mode, len(wanted.sources))
        lent.setsockopt(level, _MCAST_MSFILTER, head + b"".join(map(_address, wanted.sources)))
