"""unix-socket: a Unix socket that listens, has a name, or is fresh, but has no other end (unix(7)).

/ { compatible = "fdbox,unix-socket-v1";
    file@0 {
        backlog;                           of a listener
        data; packets; rights@0 { ... };   what is queued (kinds/_queue.py)
        name@0 { ... };  ...               and what all Unix sockets have (kinds/_unix.py)
    };
};
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from fdbox.errors import KernelError
from fdbox.kinds import _queue, _unix
from fdbox.kinds.base import Kind, Ordinary
from fdbox.kinds.freight import Made
from fdbox.linux import sock, sockdiag
from fdbox.linux.fd import OwnedFd
from fdbox.model import Description

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdbox.fdt.tree import Node
    from fdbox.kinds._queue import Sent
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Company, Look, OpenFile
    from fdbox.model import Carriage


class UnixSocket(Ordinary):
    """A Unix socket without another end."""

    name = "unix-socket"
    about = "a Unix socket that listens, is bound, or is fresh"
    keeps = (
        "type, path (with the mode and owner of its file) or abstract name, backlog, queued datagrams, descriptors in them "
        "that are in the box, that it is shut down, options, filter, owner"
    )
    loses = (
        "connections that wait to be accepted; who sent a queued datagram; who listens (SO_PEERCRED of those who connect): "
        "it is fdbox; who gets SIGIO"
    )
    compatible = "fdbox,unix-socket-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return (
            seen.family is not None
            and seen.family.domain == socket.AF_UNIX
            and not sock.is_connected(seen.fd)
        )

    def describe(self, seen: Look) -> Description:
        """Return its name, if it has one."""
        return Description(self.name, None, _unix.label(seen))

    def obstacle(self, seen: Look) -> Carriage | None:
        """Return what `_unix` says."""
        return _unix.obstacle(seen)

    def depends_on(self, file: OpenFile, company: Company) -> Sequence[OpenFile]:
        """Return what is queued in it."""
        if not _has_queue(file):
            return ()
        needed = _queue.needs(file, company)
        return [one for one in company.files if one in needed]

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write it down."""
        told = _unix.state(file)
        with sock.borrow(file.fd) as lent:
            _unix.write(file, lent, told, node)
            lost = _unix.write_name(file, lent, node)
        if told.is_listening:
            node.set_u32("backlog", told.sending)
            lost += _waiting(told.receiving)
        elif _has_queue(file):
            with _queue.peeked(file) as messages:
                lost += _queue.write(messages, node, freight)
                lost += (f"who sent what is queued ({len(messages)})",) if messages else ()
        if lost:
            node.set_texts("lost", list(lost))

    def same(self, file: OpenFile, saved: Node, freight: Freight) -> bool:
        """Return whether it is as it was saved, and still has no other end."""
        return not sock.is_connected(file.fd) and super().same(file, saved, freight)

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return it, bound and listening again."""
        messages = _queue.read(node, arrivals)
        made = socket.socket(socket.AF_UNIX, _unix.type_of(node))
        with contextlib.ExitStack() as undo:
            undo.callback(made.close)
            with _unix.named(made, node, arrivals.owner):
                if messages:
                    _fill(made, messages)
                lost = _unix.finish(made, node)
                if node.has("backlog"):
                    lost += _listen(made, node.u32("backlog"))
            undo.pop_all()
        return Made(OwnedFd(made.detach()), lost)


def _has_queue(file: OpenFile) -> bool:
    return file.look.family is not None and file.look.family.type == socket.SOCK_DGRAM


def _waiting(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"connections that wait to be accepted ({count}): whoever made them finds them closed",)


def _fill(made: socket.socket, messages: Sequence[Sent]) -> None:
    """Send datagrams to a socket, by its name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(made.getsockname())
        inode = os.fstat(sender.fileno()).st_ino
        if sockdiag.unix_socket(inode).peer != os.fstat(made.fileno()).st_ino:
            raise KernelError("somebody else has its name", remedy="put a new socket into the box")
        _queue.fill(sender, messages)


def _listen(made: socket.socket, backlog: int) -> tuple[str, ...]:
    made.listen(backlog)
    fresh = sockdiag.unix_socket(os.fstat(made.fileno()).st_ino).sending
    if fresh == backlog:
        return ()
    return (f"its backlog: {fresh} instead of {backlog}, for net.core.somaxconn allows no more",)


KINDS: tuple[Kind, ...] = (UnixSocket(),)
