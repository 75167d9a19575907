"""What the kernel tells of a Unix socket to those who know its inode (sock_diag(7), net/unix/diag.c)."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import NamedTuple

from fdbox.errors import KernelError
from fdbox.linux import fdinfo

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_HEADER = struct.Struct(
    "=IHHII"
)  # struct nlmsghdr { __u32 len; __u16 type, flags; __u32 seq, pid; }
# struct unix_diag_req { __u8 family, protocol; __u16 pad; __u32 states, ino, show, cookie[2]; }
_REQUEST = struct.Struct("=BBHIIIII")
_ANY = 0xFFFFFFFF
# struct unix_diag_msg { __u8 family, type, state, pad; __u32 ino, cookie[2]; }
_MESSAGE = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr { __u16 nla_len, nla_type; }
_PAIR = struct.Struct(
    "=II"
)  # struct unix_diag_vfs { ino, dev; }, unix_diag_rqlen { rqueue, wqueue; }
_VFS, _PEER, _LENGTHS, _SHUTDOWN = 1, 2, 4, 6  # UNIX_DIAG_*
_SHOW = 0x02 | 0x04 | 0x10  # UDIAG_SHOW_VFS, _PEER, _RQLEN
_LISTEN = 10  # TCP_LISTEN
_ANSWER = 1 << 16
_REMEDIES = {
    errno.ENOENT: "it must be in fdbox's network namespace, and the kernel needs CONFIG_UNIX_DIAG",
    errno.EPROTONOSUPPORT: "the kernel needs CONFIG_UNIX_DIAG",
}


class UnixSocket(NamedTuple):
    """A Unix socket, as the kernel sees it."""

    #: SOCK_*
    type: int
    is_listening: bool
    #: the inode of the socket at its other end; 0: closed, not accepted yet, or there is none
    peer: int
    #: of a listener, the connections that wait; of others, bytes to be read (a datagram socket: of the first message)
    receiving: int
    #: of a listener, its backlog; of others, the memory that what it sent takes until it is read
    sending: int
    #: 1: it receives no more (RCV_SHUTDOWN), 2: it sends no more (SEND_SHUTDOWN)
    shutdown: int
    #: st_dev, and the lower 32 bits of st_ino, of the file that it is bound to; also after that was removed
    file: tuple[int, int] | None


def unix_socket(inode: int) -> UnixSocket:
    """Return what is known of the Unix socket with this inode number.

    Raises:
        KernelError: ENOENT (there is none in this network namespace), EPROTONOSUPPORT.
    """
    try:
        answer = _ask(_REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode & _ANY, _SHOW, _ANY, _ANY))
    except OSError as error:
        code = error.errno or 0
        raise KernelError(
            f"the kernel does not tell of the Unix socket {inode}: {error.strerror}",
            errno=code,
            remedy=_REMEDIES.get(code),
        ) from error
    return _parse(answer)


def _ask(request: bytes) -> bytes:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as asking:
        size = _HEADER.size + len(request)
        header = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
        asking.send(header + request)
        answer = asking.recv(_ANSWER)
    size, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        raise OSError(-code, os.strerror(-code))
    return answer[_HEADER.size : size]


def _parse(message: bytes) -> UnixSocket:
    _, kind, state, *_ = _MESSAGE.unpack_from(message)
    told: dict[int, bytes] = {}
    at = _MESSAGE.size
    while at + _ATTRIBUTE.size <= len(message):
        length, name = _ATTRIBUTE.unpack_from(message, at)
        told[name] = message[at + _ATTRIBUTE.size : at + length]
        at += (max(length, _ATTRIBUTE.size) + 3) & ~3
    receiving, sending = _PAIR.unpack(told[_LENGTHS])
    return UnixSocket(
        type=int(kind),
        is_listening=state == _LISTEN,
        peer=int.from_bytes(told.get(_PEER, b""), sys.byteorder),
        receiving=int(receiving),
        sending=int(sending),
        shutdown=told[_SHUTDOWN][0] if _SHUTDOWN in told else 0,
        file=_file(told[_VFS]) if _VFS in told else None,
    )


def _file(raw: bytes) -> tuple[int, int]:
    inode, device = _PAIR.unpack(raw)
    return fdinfo.device(device), int(inode)
