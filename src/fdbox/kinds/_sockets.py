"""What all kinds of sockets have in common: options, a filter, and what fstat(2) tells.

    flags; mode; uid; gid; so-... ;      in a node of the kind's own
    filter;                              a classic BPF program, if it has one

An option is written down only if it is not what a fresh socket of the same family, type and protocol has: so the next kernel
may have other defaults. One that cannot be set again is told as lost, and the socket goes on.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdbox.errors import FdtError
from fdbox.linux import sock
from fdbox.model import Carriage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fdbox.fdt.tree import Node
    from fdbox.kinds.look import Look, OpenFile

KEPT_FLAGS = os.O_NONBLOCK
_FOREIGN = Carriage(
    None,
    "it is in another network namespace than fdbox",
    "make it in the network namespace that fdbox runs in, or run fdbox in that one",
)
_INT = struct.Struct("=I")
_TIMEVAL = struct.Struct("=qq")  # struct __kernel_old_timeval { long tv_sec, tv_usec; }
_LINGER = struct.Struct("=ii")  # struct linger { int l_onoff, l_linger; }
_MICROSECONDS = 1_000_000
_LONGEST = 1 << 62
#: a kernel without an option says one of these when it is asked for
_UNKNOWN = (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL)
_FORCE = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}  # SO_SNDBUFFORCE, SO_RCVBUFFORCE


class Form(enum.Enum):
    """What an option's value looks like, and how it is written down."""

    #: int: u32
    INT = enum.auto()
    #: struct timeval: u64, microseconds
    TIME = enum.auto()
    #: struct linger: u64, its two numbers
    LINGER = enum.auto()
    #: int, of which the kernel keeps twice what is set: u32, as it is read
    BUFFER = enum.auto()


@dataclass(frozen=True, slots=True)
class Option:
    """One option of sockets; `name` is that of its property."""

    name: str
    level: int
    number: int
    form: Form = Form.INT


def _socket(name: str, number: int, form: Form = Form.INT) -> Option:
    return Option(name, socket.SOL_SOCKET, number, form)


#: What every family has; the numbers are those of include/uapi/asm-generic/socket.h. They are set in this order.
EVERY: tuple[Option, ...] = (
    _socket("so-dontroute", socket.SO_DONTROUTE),
    _socket("so-broadcast", socket.SO_BROADCAST),
    _socket("so-keepalive", socket.SO_KEEPALIVE),
    _socket("so-oobinline", socket.SO_OOBINLINE),
    _socket("so-priority", socket.SO_PRIORITY),
    _socket("so-linger", socket.SO_LINGER, Form.LINGER),
    _socket("so-mark", socket.SO_MARK),
    _socket("so-rcvlowat", socket.SO_RCVLOWAT),
    _socket("so-rcvtimeo", socket.SO_RCVTIMEO, Form.TIME),
    _socket("so-sndtimeo", socket.SO_SNDTIMEO, Form.TIME),
    _socket("so-timestamp", 29),
    _socket("so-timestampns", 35),
    _socket("so-timestamp-new", 63),
    _socket("so-timestampns-new", 64),
    _socket("so-timestamping", 37),
    _socket("so-rxq-ovfl", 40),
    _socket("so-select-err-queue", 45),
    _socket("so-busy-poll", 46),
    _socket("so-sndbuf", socket.SO_SNDBUF, Form.BUFFER),
    _socket("so-rcvbuf", socket.SO_RCVBUF, Form.BUFFER),
    _socket("so-buf-lock", 72),
)


def foreign(lent: socket.socket) -> Carriage | None:
    """Return why a socket cannot be carried, if it is in another network than fdbox.

    Before Linux 5.14 that is not told; then naming it again fails.
    """
    try:
        return None if sock.is_in_our_network(lent) else _FOREIGN
    except OSError:
        return None


def obstacle(seen: Look) -> Carriage | None:
    """Return why a socket cannot be carried, if that is known at once."""
    with sock.borrow(seen.fd) as lent:
        return foreign(lent)


def read(lent: socket.socket, option: Option) -> int | None:
    """Return the value of an option; None where the kernel, or this socket, does not have it."""
    size = _LINGER.size if option.form is Form.LINGER else _INT.size
    try:
        raw = lent.getsockopt(
            option.level, option.number, _TIMEVAL.size if option.form is Form.TIME else size
        )
    except OSError as error:
        if error.errno in _UNKNOWN:
            return None
        raise
    match option.form:
        case Form.TIME:
            seconds, rest = _TIMEVAL.unpack(raw)
            return int(seconds) * _MICROSECONDS + int(rest)
        case Form.LINGER:
            on, seconds = _LINGER.unpack(raw)
            return int(on) << 32 | int(seconds)
        case Form.INT | Form.BUFFER:
            return int(_INT.unpack(raw.ljust(_INT.size, b"\0"))[0])


def set_again(lent: socket.socket, option: Option, value: int) -> None:
    """Set an option to what `read` has returned. OSError; FdtError if no option has such a value."""
    if option.form is Form.BUFFER:
        set_buffer(lent, option.number, value)
    else:
        lent.setsockopt(option.level, option.number, _raw(option, value))


def _raw(option: Option, value: int) -> bytes:
    if option.form is Form.LINGER:
        return _LINGER.pack(value >> 32 & 1, value & 0x7FFFFFFF)
    if option.form is not Form.TIME:
        return _INT.pack(value)
    if value > _LONGEST:
        raise FdtError(f"{option.name} is a time that no socket has")
    return _TIMEVAL.pack(*divmod(value, _MICROSECONDS))


def set_buffer(lent: socket.socket, number: int, value: int) -> None:
    """Set SO_SNDBUF or SO_RCVBUF, so that it reads `value`: over net.core.[rw]mem_max that needs CAP_NET_ADMIN.

    OSError: EPERM, it is less now.
    """
    half = _INT.pack(min(value // 2, (1 << 30) - 1))
    with contextlib.suppress(PermissionError):
        lent.setsockopt(socket.SOL_SOCKET, _FORCE[number], half)
        return
    lent.setsockopt(socket.SOL_SOCKET, number, half)
    if lent.getsockopt(socket.SOL_SOCKET, number) < value // 2 * 2:
        raise OSError(errno.EPERM, "more than net.core.rmem_max or wmem_max needs CAP_NET_ADMIN")


def write(file: OpenFile, lent: socket.socket, node: Node, options: Sequence[Option]) -> None:
    """Write down what a socket has, and what fstat(2) tells of it; CannotCarry for a filter that cannot be read."""
    node.set_u32("flags", file.look.flags & KEPT_FLAGS)
    status = os.fstat(file.fd)
    node.set_u32("mode", status.st_mode & 0o7777)
    node.set_u32("uid", status.st_uid)
    node.set_u32("gid", status.st_gid)
    with socket.socket(lent.family, lent.type, lent.proto) as fresh:
        for option in options:
            value = read(lent, option)
            if value is not None and value != read(fresh, option):
                _set(node, option, value)
    _write_filter(file, lent, node)


def _write_filter(file: OpenFile, lent: socket.socket, node: Node) -> None:
    try:
        code = sock.filter_of(lent)
    except PermissionError as error:
        raise file.refuse(
            "an eBPF program is attached to it, and cannot be read", "detach it (SO_DETACH_FILTER)"
        ) from error
    if code:
        node.set_data("filter", code)


def _set(node: Node, option: Option, value: int) -> None:
    if option.form in (Form.TIME, Form.LINGER):
        node.set_u64(option.name, value)
    else:
        node.set_u32(option.name, value)


def _value(node: Node, option: Option) -> int:
    wide = option.form in (Form.TIME, Form.LINGER)
    return node.u64(option.name) if wide else node.u32(option.name)


def apply(lent: socket.socket, node: Node, options: Iterable[Option]) -> tuple[str, ...]:
    """Give a new socket its options; return what of them is lost."""
    lost = []
    for option in options:
        if not node.has(option.name):
            continue
        try:
            set_again(lent, option, _value(node, option))
        except OSError as error:
            lost.append(f"its option {option.name}: {error.strerror}")
    return tuple(lost)


def finish(lent: socket.socket, node: Node) -> tuple[str, ...]:
    """Give a socket the rest, when nothing more has to be sent to it: filter, owner, mode, flags; return what is lost."""
    lost = []
    if node.has("filter"):
        try:
            sock.attach_filter(lent, node.data("filter"))
        except OSError as error:
            lost.append(f"its filter: {error.strerror}")
    try:
        own(lent.fileno(), node)
    except OSError as error:
        lost.append(f"its owner: {error.strerror}")
    lent.setblocking(not node.u32("flags") & KEPT_FLAGS)
    return tuple(lost)


def own(target: int | str, node: Node) -> None:
    """Give a socket, or a socket's file, owner and mode; OSError EPERM."""
    status = os.stat(target)  # noqa: PTH116 - it can be a descriptor
    if (status.st_uid, status.st_gid) != (node.u32("uid"), node.u32("gid")):
        os.chown(target, node.u32("uid"), node.u32("gid"))
    os.chmod(target, node.u32("mode") & 0o7777)  # noqa: PTH101 - it can be a descriptor
