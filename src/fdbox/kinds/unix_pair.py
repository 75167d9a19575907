"""unix-pair: a Unix socket with another end, whether from socketpair(2), connect(2) or accept(2) (unix(7)).

    / { compatible = "fdbox,unix-pair-v1";
        file@0 {
            peer = <file>;                     the other end; 0xffffffff: it is closed
            reset;                             it was closed with something unread, which is still to be reported
            charged;                           memory that the other end pays for what is queued here (to notice a late write)
            data; packets; rights@0 { ... };   what is queued (kinds/_queue.py)
            ...                                and what all Unix sockets have (kinds/_unix.py)
        };
    };

Both ends have to be in the box: nobody else could be told that the other one is another socket now.
"""

from __future__ import annotations

import contextlib
import select
import socket
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, FdtError
from fdbox.kinds import _queue, _unix
from fdbox.kinds.base import Kind, Ordinary, attempt, numbered, with_losses
from fdbox.kinds.freight import Made
from fdbox.linux import sock
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import Description

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight, Loaded
    from fdbox.kinds.look import Company, Look, OpenFile
    from fdbox.linux.sockdiag import UnixSocket
    from fdbox.model import Carriage

_CLOSED = 0xFFFFFFFF
#: what the kernel sets where the other end of a connection is closed
_BOTH = 3


class UnixPair(Ordinary):
    """A Unix socket with another end."""

    name = "unix-pair"
    about = "a connected Unix socket: stream, datagram or seqpacket; both ends in one box"
    keeps = (
        "which ends belong together, queued messages and their boundaries, descriptors in them that are in the box, "
        "that an end is closed or shut down, options, filter, owner, the names of datagram sockets"
    )
    loses = (
        "who the peer is (SO_PEERCRED), and the sender of what is queued (SCM_CREDENTIALS): it is fdbox; the name that an end "
        "has from its listener; who gets SIGIO"
    )
    compatible = "fdbox,unix-pair-v1"
    is_portable = True

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return (
            seen.family is not None
            and seen.family.domain == socket.AF_UNIX
            and sock.is_connected(seen.fd)
        )

    def describe(self, seen: Look) -> Description:
        """Return its name, if it has one."""
        return Description(self.name, None, _unix.label(seen))

    def obstacle(self, seen: Look) -> Carriage | None:
        """Return what `_unix` says."""
        return _unix.obstacle(seen)

    def depends_on(self, file: OpenFile, company: Company) -> Sequence[OpenFile]:
        """Return what is queued in both ends, so that they are made together; CannotCarry if one of them is missing."""
        other = _partner(file, _unix.state(file), company)
        needed = _queue.needs(file, company)
        if other is not None:
            needed |= _queue.needs(other, company)
        return [one for one in company.files if one in needed]

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down one end, and what is queued in it."""
        told = _unix.state(file)
        other = _partner(file, told, freight.company)
        node.set_u32("peer", _CLOSED if other is None else freight.places[other].file)
        with sock.borrow(file.fd) as lent:
            _unix.write(file, lent, told, node)
            lost = _write_name(file, lent, node)
            if other is None:
                node.set_u32("reset", int(_is_reset(lent)))
            else:
                node.set_u32("charged", _unix.state(other).sending)
            lost += _write_queue(file, lent, node, freight)
        if lost:
            node.set_texts("lost", list(lost))

    def load(self, component: Node, arrivals: Arrivals) -> Iterator[Loaded]:
        """Yield every end; see `CarriedKind`."""
        nodes = list(numbered(component, "file"))
        waiting: dict[int, Loaded] = {}
        try:
            for index in range(len(nodes)):
                if index not in waiting:
                    waiting |= self._made(index, nodes, arrivals)
                yield waiting.pop(index)
        finally:
            close_all(one.fd for one in waiting.values() if isinstance(one, Made))

    def _made(self, index: int, nodes: Sequence[Node], arrivals: Arrivals) -> Mapping[int, Loaded]:
        """Return one end, and the other, if there is one, by their numbers."""
        node = nodes[index]
        try:
            peer = _peer(index, nodes)
        except FdtError as error:
            return {index: error}
        if peer is None:
            return {index: self._read(node, arrivals)}
        others: list[Made] = []
        first = attempt(lambda: _connected(node, nodes[peer], arrivals, others), self.name)
        second = others[0] if others else first
        return {index: with_losses(node, first), peer: with_losses(nodes[peer], second)}

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return an end whose other end is closed."""
        messages = _queue.read(node, arrivals)
        own, other = socket.socketpair(socket.AF_UNIX, _unix.type_of(node))
        with contextlib.ExitStack() as undo:
            undo.callback(own.close)
            with other:
                _queue.fill(other, messages)
                if node.u32("reset"):
                    own.send(b"unread", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            lost = _finish(own, node, arrivals)
            undo.pop_all()
        return Made(OwnedFd(own.detach()), lost)


# --- leaving ---------------------------------------------------------------------------------------------------------


def _partner(file: OpenFile, told: UnixSocket, company: Company) -> OpenFile | None:
    """Return the other end; None if it is closed.

    CannotCarry: it is in no entry of the box, or is connected to something else.
    """
    device, inode = file.look.inode
    if not told.peer:
        if told.type != socket.SOCK_DGRAM and told.shutdown != _BOTH:
            raise file.refuse(
                "nobody has accepted its connection yet", "put it into the box when it is accepted"
            )
        return None
    found = company.with_inode(device, told.peer)
    if not found:
        raise file.refuse(
            f"its other end (socket:[{told.peer}]) is open, and in no entry of the box",
            "put both ends into the same box, or close the other one",
        )
    if told.peer == inode or _unix.state(found[0]).peer != inode:
        raise file.refuse(
            f"it sends to {found[0].entry!r}, which is not connected to it",
            "remove it from the box, and connect it again in the next kernel",
        )
    return found[0]


def _write_name(file: OpenFile, lent: socket.socket, node: Node) -> tuple[str, ...]:
    """Write down a datagram socket's name; that of a stream is its listener's, which has it again."""
    if lent.type == socket.SOCK_DGRAM:
        return _unix.write_name(file, lent, node)
    address = lent.getsockname()
    return (f"its name {_unix.printable(address)!r}",) if address else ()


def _is_reset(lent: socket.socket) -> bool:
    poller = select.poll()
    poller.register(lent, 0)
    return any(events & select.POLLERR for _, events in poller.poll(0))


def _write_queue(
    file: OpenFile, lent: socket.socket, node: Node, freight: Freight
) -> tuple[str, ...]:
    if lent.type == socket.SOCK_STREAM and sock.has_urgent(lent):
        raise file.refuse("an out-of-band byte (MSG_OOB) waits in it", "read it first")
    with _queue.peeked(file) as messages:
        lost = _queue.write(messages, node, freight)
        if lent.type == socket.SOCK_STREAM or not node.has("charged"):
            return lost
        hidden = _queue.hidden(messages, lent.type, node.u32("charged"))
    if hidden:
        lost += (f"{hidden} empty messages in its queue that somebody has peeked at",)
    return lost


# --- arriving --------------------------------------------------------------------------------------------------------


def _peer(index: int, nodes: Sequence[Node]) -> int | None:
    """Return the number of the other end, which comes later; None if it is closed. FdtError."""
    peer = nodes[index].u32("peer")
    if peer == _CLOSED:
        return None
    if not index < peer < len(nodes) or nodes[peer].u32("peer") != index:
        raise FdtError(f"{nodes[index].name} has no other end")
    return peer


def _connected(node: Node, other: Node, arrivals: Arrivals, others: list[Made]) -> Made:
    """Return one end; the other one is added to `others`."""
    if _unix.type_of(node) != _unix.type_of(other):
        raise FdtError(f"{node.name} and {other.name} are of different types")
    received, sent = _queue.read(node, arrivals), _queue.read(other, arrivals)
    one, two = socket.socketpair(socket.AF_UNIX, _unix.type_of(node))
    with contextlib.ExitStack() as undo:
        undo.callback(one.close)
        undo.callback(two.close)
        _queue.fill(two, received)
        _queue.fill(one, sent)
        lost_of_one, lost_of_two = _finish(one, node, arrivals), _finish(two, other, arrivals)
        undo.pop_all()
    others.append(Made(OwnedFd(two.detach()), lost_of_two))
    return Made(OwnedFd(one.detach()), lost_of_one)


def _finish(lent: socket.socket, node: Node, arrivals: Arrivals) -> tuple[str, ...]:
    """Give an end its name and the rest; return what is lost. It is connected, so it can do without a name."""
    lost: tuple[str, ...] = ()
    try:
        with _unix.named(lent, node, arrivals.owner):
            pass
    except FdboxError as error:
        lost = (f"its name: {error.message}",)
    return (*lost, *_unix.finish(lent, node))


KINDS: tuple[Kind, ...] = (UnixPair(),)
