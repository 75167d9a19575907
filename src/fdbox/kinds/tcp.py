"""tcp-socket: a TCP socket that listens, is bound, or is fresh (tcp(7)); and connections, which are refused.

/ { compatible = "fdbox,tcp-socket-v1";
    file@0 {
        backlog;                of a listener
        congestion; tcp-... ;   TCP_CONGESTION and other options
        ...                     and what all internet sockets have (kinds/_inet.py)
    };
};
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from fdbox.kinds import _inet, _sockets
from fdbox.kinds._sockets import Option
from fdbox.kinds.base import Kind, Ordinary, Uncarried
from fdbox.kinds.freight import Made
from fdbox.linux import sock
from fdbox.linux.fd import OwnedFd
from fdbox.model import Description

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.model import Carriage

# include/net/tcp_states.h
_CLOSE, _LISTEN = 7, 10
# struct tcp_info, include/uapi/linux/tcp.h: tcpi_state; of a listener tcpi_unacked is its queue and tcpi_sacked its backlog
_INFO = struct.Struct("=B7x4III")
_REPAIR, _ULP = 19, 31


def _tcp(name: str, number: int) -> Option:
    return Option(f"tcp-{name}", socket.IPPROTO_TCP, number)


_OPTIONS: tuple[Option, ...] = (
    _tcp("nodelay", 1),
    _tcp("maxseg", 2),
    _tcp("cork", 3),
    _tcp("keepidle", 4),
    _tcp("keepintvl", 5),
    _tcp("keepcnt", 6),
    _tcp("syncnt", 7),
    _tcp("linger2", 8),
    _tcp("defer-accept", 9),
    _tcp("window-clamp", 10),
    _tcp("quickack", 12),
    _tcp("user-timeout", 18),
    _tcp("fastopen", 23),
    _tcp("notsent-lowat", 25),
    _tcp("save-syn", 27),
    _tcp("fastopen-connect", 30),
    _tcp("fastopen-no-cookie", 34),
    _tcp("inq", 36),
    _tcp("tx-delay", 37),
)


def _is_tcp(seen: Look) -> bool:
    return (
        seen.family is not None
        and seen.family.domain in _inet.DOMAINS
        and seen.family.type == socket.SOCK_STREAM
        and seen.family.protocol in (0, socket.IPPROTO_TCP)
    )


def _info(fd: int) -> tuple[int, int, int]:
    """Return the state of a TCP socket, and of a listener how many wait and how many may."""
    with sock.borrow(fd) as lent:
        raw = lent.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    state, _, _, _, _, waiting, backlog = _INFO.unpack(raw)
    return int(state), int(waiting), int(backlog)


class TcpSocket(Ordinary):
    """A TCP socket without a connection."""

    name = "tcp-socket"
    about = "a TCP socket that listens, is bound, or is fresh"
    keeps = "address, port, backlog, options, filter, O_NONBLOCK"
    loses = "connections that wait to be accepted; keys (TCP_MD5SIG, TCP_AO, TCP_FASTOPEN_KEY) and eBPF programs of its SO_REUSEPORT group"
    compatible = "fdbox,tcp-socket-v1"
    is_portable = True

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return _is_tcp(seen) and _info(seen.fd)[0] in (_CLOSE, _LISTEN)

    def describe(self, seen: Look) -> Description:
        """Return its address."""
        return Description(self.name, None, _inet.label(seen))

    def obstacle(self, seen: Look) -> Carriage | None:
        """Return what `_sockets` says."""
        return _sockets.obstacle(seen)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write it down."""
        state, waiting, backlog = _info(file.fd)
        with sock.borrow(file.fd) as lent:
            _check(file, lent)
            _inet.write(file, lent, node, _OPTIONS)
            congestion = lent.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        node.set_text("congestion", congestion.rstrip(b"\0").decode())
        if state == _LISTEN:
            node.set_u32("backlog", backlog)
        if state == _LISTEN and waiting:
            node.set_texts(
                "lost",
                [
                    f"connections that wait to be accepted ({waiting}): who made them finds them closed"
                ],
            )

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return it, bound and listening again."""
        congestion = node.text("congestion").encode()
        made = _inet.create(node, socket.SOCK_STREAM)
        with contextlib.ExitStack() as undo:
            undo.callback(made.close)
            lost = list(_inet.bind(made, node, _OPTIONS))
            try:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion)
            except OSError as error:
                lost.append(f"its congestion control {congestion.decode()!r}: {error.strerror}")
            lost += _sockets.finish(made, node)
            if node.has("backlog"):
                made.listen(min(node.u32("backlog"), (1 << 31) - 1))
            undo.pop_all()
        return Made(OwnedFd(made.detach()), tuple(lost))


def _check(file: OpenFile, lent: socket.socket) -> None:
    if lent.getsockopt(socket.IPPROTO_TCP, _REPAIR):
        raise file.refuse("it is being repaired (TCP_REPAIR)", "end the repair first")
    try:
        protocol = lent.getsockopt(socket.IPPROTO_TCP, _ULP, 16).rstrip(b"\0")
    except OSError:  # a kernel without them
        return
    if protocol:
        raise file.refuse(f"it has an upper layer protocol ({protocol.decode()})")


KINDS: tuple[Kind, ...] = (
    TcpSocket(),
    Uncarried(
        "tcp-connection",
        "a TCP connection",
        lambda seen: _is_tcp(seen) and _info(seen.fd)[0] not in (_CLOSE, _LISTEN),
        "its peer is on another machine, or in a process that ends; fdbox does not repair connections yet",
        "close it before an update of the kernel, and have the peer connect again",
    ),
)
