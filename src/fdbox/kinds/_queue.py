"""What is queued in a Unix socket: messages, or the bytes of a stream, and the descriptors that came with them.

    data; packets = <len ...>;              the messages, one behind the other
    rights@N { message; descriptors = <component file ...>; };

It is looked at with MSG_PEEK from an offset (SO_PEEK_OFF), which is put back. The kernel shows an empty message only to
the first who peeks; those that were seen before are remembered here.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import os
import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import FdtError, KernelError
from fdbox.kinds import _sockets
from fdbox.kinds.base import numbered
from fdbox.kinds.freight import Place
from fdbox.linux import fdinfo, kcmp, sock, sockdiag
from fdbox.linux.fd import OwnedFd, close_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Company, OpenFile

_FIRST_ROOM = 1 << 16
_MOST_ROOM = 1 << 30
#: a queue with more messages grows while it is looked at
_MOST_MESSAGES = 1 << 20
_MANY = 1024
_FULL = "raise net.core.wmem_max and net.unix.max_dgram_qlen to what they were, or run as root"
#: more than the kernel counts for one message besides its bytes (struct sk_buff and its pages)
_OVERHEAD = 4096
_SO_BUF_LOCK = 72
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


@dataclass(frozen=True, slots=True)
class Message:
    """A message, or bytes of a stream that are read together."""

    data: bytes
    fds: tuple[OwnedFd, ...] = ()


class Sent(NamedTuple):
    """A message to be sent again, with borrowed descriptors."""

    data: bytes
    fds: list[int]


# --- looking ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def peeked(file: OpenFile) -> Iterator[list[Message]]:
    """Lend what is queued; the descriptors are duplicates."""
    found: list[Message] = []
    try:
        with sock.borrow(file.fd) as lent:
            before = lent.getsockopt(socket.SOL_SOCKET, sock.SO_PEEK_OFF)
            try:
                _walk(file, lent, found)
            finally:
                if lent.getsockopt(socket.SOL_SOCKET, sock.SO_PEEK_OFF) != before:
                    sock.set_peek_offset(lent, before)
            whole = found if lent.type == socket.SOCK_STREAM else _with_hidden(lent, found)
        yield whole
    finally:
        close_all(fd for message in found for fd in message.fds)


def _walk(file: OpenFile, lent: socket.socket, found: list[Message]) -> None:
    # In one look at a stream, for the second would show again the descriptors of what the first has cut.
    offset, buffer = 0, bytearray(sock.readable(lent) + _FIRST_ROOM)
    while len(found) < _MOST_MESSAGES and offset < _MOST_ROOM:
        if _is_end(file, lent, offset):
            return
        try:
            _go_to(lent, offset)
            piece = sock.peek(lent, buffer)
        except BlockingIOError:
            return
        if piece.size > len(buffer):
            close_all(piece.fds)
            buffer = bytearray(piece.size)
            continue
        found.append(Message(bytes(buffer[: piece.size]), tuple(piece.fds)))
        if piece.fds and lent.type == socket.SOCK_STREAM:
            _split(lent, offset, found)
        offset += piece.size
    raise file.refuse(
        "it is written to and read from all the time", "stop the programs that use it"
    )


def _go_to(lent: socket.socket, offset: int) -> None:
    """Set where to peek; the beginning of a stream is where it is peeked at anyway, and mostly that shows all there is."""
    at = lent.getsockopt(socket.SOL_SOCKET, sock.SO_PEEK_OFF)
    if at != offset and not (lent.type == socket.SOCK_STREAM and (at, offset) == (-1, 0)):
        sock.set_peek_offset(lent, offset)


def _is_end(file: OpenFile, lent: socket.socket, offset: int) -> bool:
    """Return whether there is nothing more, and looking would do harm, or no good.

    Looking takes away an error that waits (SO_ERROR): a stream's when it comes to the end, that of others at once. The end
    of a connection looks like an empty message, to every reader.
    """
    more = sock.readable(lent) > offset
    if lent.type == socket.SOCK_STREAM:
        return not more
    poller = select.poll()
    poller.register(lent, select.POLLIN | select.POLLRDHUP)
    happened = sum(events for _, events in poller.poll(0))
    if happened & select.POLLERR and more:
        raise file.refuse(
            "an error waits in it (SO_ERROR), which looking at its queue would take away",
            "read from it once",
        )
    ended = lent.type == socket.SOCK_SEQPACKET and happened & select.POLLRDHUP
    return not happened or (not more and bool(happened & select.POLLERR or ended))


def _split(lent: socket.socket, offset: int, found: list[Message]) -> None:
    """Take the bytes that came before the descriptors off the last piece: who reads only those gets no descriptors."""
    whole = found.pop()
    _go_to(lent, offset)
    before = sock.before_last(lent, len(whole.data))
    if before:
        found.append(Message(whole.data[:before]))
    found.append(Message(whole.data[before:], whole.fds))


# --- empty messages --------------------------------------------------------------------------------------------------

#: by SO_COOKIE, for queues that have an empty message: what was in them the last time, b"" and checksums
_remembered: dict[int, list[bytes]] = {}


def _with_hidden(lent: socket.socket, found: list[Message]) -> list[Message]:
    """Return the messages, and among them the empty ones that the kernel no longer shows.

    What is still there of what was there the last time comes before everything new.
    """
    key = sock.cookie(lent)
    sums = [_checksum(message.data) for message in found]
    before = _remembered.pop(key, [])
    start = next(at for at in range(len(before) + 1) if _begins(sums, before[at:]))
    rest = iter(found)
    whole = [next(rest) if one else Message(b"") for one in before[start:]]
    whole += rest
    if not all(message.data for message in whole):
        _remembered[key] = [_checksum(message.data) for message in whole]
        while len(_remembered) > _MANY:
            del _remembered[next(iter(_remembered))]
    return whole


def _begins(sums: Sequence[bytes], before: Sequence[bytes]) -> bool:
    """Return whether what is shown begins with what was there before, but for its empty messages."""
    shown = [one for one in before if one]
    return list(sums[: len(shown)]) == shown


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest() if data else b""


def hidden(messages: Sequence[Message], type_: int, charged: int) -> int:
    """Return how many empty messages are not among those of a queue, all of which is charged to one sender's memory.

    It is found by sending the same once more. 0, too, where there is no room for that.
    """
    if not charged:
        return 0
    try:
        more = charged - _charge([Sent(message.data, []) for message in messages], type_)
        empty = _charge([Sent(b"", [])], type_)
    except KernelError:
        return 0
    return more // empty if more > 0 and more % empty == 0 else 0


def _charge(messages: Sequence[Sent], type_: int) -> int:
    """Return what messages take of their sender's memory."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, type_)
    with sender, receiver:
        fill(sender, messages)
        return sockdiag.unix_socket(os.fstat(sender.fileno()).st_ino).sending


# --- leaving ---------------------------------------------------------------------------------------------------------


def needs(file: OpenFile, company: Company) -> set[OpenFile]:
    """Return the files of the box that are queued in a socket."""
    with peeked(file) as messages:
        found = {_find(fd.fileno(), company) for message in messages for fd in message.fds}
    return {one for one in found if one is not None}


def _find(fd: int, company: Company) -> OpenFile | None:
    # Not by fstat(2): it may be of a file system (FUSE) that lets it wait.
    inode = fdinfo.read(fd).ino
    candidates = (file for file in company.files if file.look.status.st_ino == inode)
    return next((file for file in candidates if kcmp.same_file(file.fd, fd)), None)


def write(messages: Sequence[Message], node: Node, freight: Freight) -> tuple[str, ...]:
    """Write down a queue; return what of it is lost."""
    if not messages:
        return ()
    node.set_data("data", b"".join(message.data for message in messages))
    node.set_u32s("packets", [len(message.data) for message in messages])
    lost: list[str] = []
    count = 0
    for number, message in enumerate(messages):
        places, missing = _places(number, message, freight)
        lost += missing
        if places:
            rights = node.add(f"rights@{count}")
            rights.set_u32("message", number)
            rights.set_u32s("descriptors", [cell for place in places for cell in place])
            count += 1
    return tuple(lost)


def _places(number: int, message: Message, freight: Freight) -> tuple[list[Place], list[str]]:
    places: list[Place] = []
    lost: list[str] = []
    for fd in message.fds:
        found = _find(fd.fileno(), freight.company)
        if found is not None:
            places.append(freight.places[found])
            continue
        link = fdinfo.link_of(fd.fileno()).encode(errors="surrogateescape").decode(errors="replace")
        lost.append(
            f"message {number + 1} in its queue carries {link}, which is in no entry of the box"
        )
    return places, lost


# --- arriving --------------------------------------------------------------------------------------------------------


def read(node: Node, arrivals: Arrivals) -> list[Sent]:
    """Return what is to be sent; FdtError, CannotCarry."""
    if not node.has("packets"):
        return []
    data, lengths = node.data("data"), node.u32s("packets")
    if sum(lengths) != len(data):
        raise FdtError(f"{node.name} has messages of other lengths than its data")
    messages: list[Sent] = []
    start = 0
    for length in lengths:
        messages.append(Sent(data[start : start + length], []))
        start += length
    for rights in numbered(node, "rights"):
        number, cells = rights.u32("message"), rights.u32s("descriptors")
        if number >= len(messages) or len(cells) % 2:
            raise FdtError(f"{rights.name} belongs to no message")
        places = map(Place, cells[::2], cells[1::2])
        messages[number].fds.extend(arrivals.file(place) for place in places)
    return messages


def fill(sender: socket.socket, messages: Sequence[Sent]) -> None:
    """Send messages into an empty queue; the sender's buffer is large while it does.

    Raises:
        KernelError: they do not fit, or what they carry cannot be sent.
    """
    size, locked = (
        sender.getsockopt(socket.SOL_SOCKET, number) for number in (socket.SO_SNDBUF, _SO_BUF_LOCK)
    )
    needed = sum(2 * len(message.data) + _OVERHEAD for message in messages)
    if needed <= size:
        _send_all(sender, messages)
        return
    with contextlib.suppress(OSError):  # as large as it may be: whether it was enough is seen
        _sockets.set_buffer(sender, socket.SO_SNDBUF, 2 * needed)
    _send_all(sender, messages)
    _sockets.set_buffer(sender, socket.SO_SNDBUF, size)
    sender.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, locked)


def _send_all(sender: socket.socket, messages: Sequence[Sent]) -> None:
    for number, message in enumerate(messages):
        try:
            _send(sender, message)
        except OSError as error:
            raise KernelError(
                f"message {number + 1} of {len(messages)} cannot be queued again: {error.strerror}",
                errno=error.errno or 0,
                remedy=_FULL,
            ) from error


def _send(sender: socket.socket, message: Sent) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", message.fds))]
    sent = sender.sendmsg([message.data], rights if message.fds else [], _SEND)
    while sent < len(message.data):  # a stream takes what there is room for
        sent += sender.send(message.data[sent:], _SEND)
