"""pipe: bytes, or packets, between two ends (pipe(7)).

    / {                              "fdbox,pipe-v1": one component for all pipes of a box
        pipe@0 {                     one for each pipe
            capacity; data;
            packets = <len ...>;     only in packet mode: the lengths of the packets that `data` is made of
        };
        file@0 { pipe; flags; };     one for each open file description: which pipe, and O_ACCMODE says which end
    };

What is queued is copied with tee(2), which takes nothing away. Whoever else holds the other end does not outlive this
kernel: the end in the box finds it closed, after what was queued.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, FdtError
from fdbox.fdt.tree import Node
from fdbox.kinds._inodes import by_inode, numbers_of
from fdbox.kinds.base import Carried, Kind, attempt, late_write, numbered
from fdbox.linux import memfd, pipe
from fdbox.linux.fd import OwnedFd, close_all, queued

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fdbox.kinds.freight import Arrivals, Freight, Loaded
    from fdbox.kinds.look import Look, OpenFile

_KEPT_FLAGS = os.O_ACCMODE | os.O_NONBLOCK | os.O_DIRECT
_TRIES = 3


@dataclass(slots=True)
class Ends:
    """A pipe on its way: a descriptor to open it by, all that are to be closed, and those that nobody has been given."""

    any: OwnedFd
    all: list[OwnedFd]
    unused: dict[int, OwnedFd] = field(default_factory=dict)


class Pipe(Carried):
    """An anonymous pipe: either end, or both."""

    name = "pipe"
    about = "a pipe: either end, or both"
    keeps = (
        "queued bytes and packets, capacity, which ends belong together, packet mode, O_NONBLOCK"
    )
    loses = "an end that is in no box: the other one finds it closed"
    compatible = "fdbox,pipe-v1"
    is_portable = True

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one without a name."""
        return seen.link.startswith("pipe:[") and not seen.is_path

    def save(self, files: Sequence[OpenFile], freight: Freight) -> Node:
        """Return the component; see `CarriedKind`."""
        root = Node("")
        groups = by_inode(files)
        for number, group in enumerate(groups):
            self.write_pipe(root.add(f"pipe@{number}"), [file for _, file in group])
        for at, (file, number) in enumerate(zip(files, numbers_of(groups), strict=True)):
            node = root.add(f"file@{at}")
            node.set_u32("pipe", number)
            node.set_u32("flags", file.look.flags & _KEPT_FLAGS)
        return root

    def verify(self, files: Sequence[OpenFile], component: Node, freight: Freight) -> None:
        """Compare what is queued; see `CarriedKind`."""
        for number, group in enumerate(by_inode(files)):
            saved = component.child(f"pipe@{number}")
            fresh = Node(saved.name)
            self.write_pipe(fresh, [file for _, file in group])
            if fresh != saved:
                raise late_write(group[0][1])

    def load(self, component: Node, arrivals: Arrivals) -> Iterator[Loaded]:
        """Yield every end; see `CarriedKind`."""
        pipes: dict[int, Ends | FdboxError] = {}
        try:
            for node in numbered(component, "file"):
                number = node.u32("pipe")
                if number not in pipes:
                    pipes[number] = self._pipe(component.child(f"pipe@{number}"))
                ends = pipes[number]
                yield ends if isinstance(ends, FdboxError) else _open(node, ends)
        finally:
            close_all(fd for one in pipes.values() if isinstance(one, Ends) for fd in one.all)

    def _pipe(self, node: Node) -> Ends | FdboxError:
        try:
            ends = self.make(node)
            _fill(node, ends)
        except FdboxError as error:
            return error
        return ends

    def write_pipe(self, node: Node, files: Sequence[OpenFile]) -> None:
        """Save one pipe, without what its open file descriptions are."""
        node.set_u32("capacity", pipe.capacity(files[0].fd))
        pieces, in_packets = _peek(files)
        node.set_data("data", b"".join(pieces))
        if in_packets:
            node.set_u32s("packets", [len(piece) for piece in pieces])

    def make(self, node: Node) -> Ends:
        """Return an empty pipe; FdboxError."""
        reading, writing = pipe.create()
        return Ends(reading, [reading, writing], {os.O_RDONLY: reading, os.O_WRONLY: writing})


# --- leaving ---------------------------------------------------------------------------------------------------------


def _peek(files: Sequence[OpenFile]) -> tuple[list[bytes], bool]:
    """Return what is queued, in pieces, and whether they are packets.

    A pipe is in packet mode where one of its writers is, and where the queue shows it: a read ends with its packet, and
    what it leaves of that is gone.
    """
    with _copy(files) as queue:
        most = max(1, queued(queue.fileno()))  # the buffer is as large as what is asked for
        pieces = list(iter(lambda: os.read(queue.fileno(), most), b""))
    if any(file.look.flags & os.O_DIRECT for file in files) or len(pieces) > 1:
        return pieces, True
    with _copy(files) as queue:
        before = queued(queue.fileno())
        os.read(queue.fileno(), 1)
        return pieces, before - queued(queue.fileno()) > 1


def _copy(files: Sequence[OpenFile]) -> OwnedFd:
    """Return a descriptor to read a copy of what is queued.

    One of the pipe's own descriptors is asked, if one can read: a new one would be a new reader to those who write.
    """
    can_read = (file.fd for file in files if file.look.flags & os.O_ACCMODE != os.O_WRONLY)
    if (own := next(can_read, None)) is not None:
        return _tee(own, files[0])
    with memfd.reopen(files[0].fd, os.O_RDONLY | os.O_NONBLOCK) as reading:
        return _tee(reading.fileno(), files[0])


def _tee(source: int, file: OpenFile) -> OwnedFd:
    for _ in range(_TRIES):
        reading, writing = pipe.create(os.O_DIRECT | os.O_NONBLOCK)
        with writing:
            try:
                pipe.set_capacity(writing.fileno(), pipe.capacity(source))
                copied = pipe.tee(source, writing.fileno(), pipe.MAX_CAPACITY)
                if copied == queued(source):
                    return reading
            except BaseException:
                reading.close()
                raise
            reading.close()
    raise file.refuse(
        "it is written to and read from all the time", "stop the programs that use it"
    )


# --- arriving --------------------------------------------------------------------------------------------------------


def _fill(node: Node, ends: Ends) -> None:
    """Give the pipe its capacity, and what was queued in it; it is closed on errors."""
    try:
        with memfd.reopen(ends.any.fileno(), os.O_RDWR | os.O_NONBLOCK) as both:
            _write_queue(node, both.fileno())
    except BaseException:
        close_all(ends.all)
        raise


def _write_queue(node: Node, fd: int) -> None:
    capacity, data = node.u32("capacity"), node.data("data")
    lengths = node.u32s("packets") if node.has("packets") else [len(data)]
    if sum(lengths) != len(data) or capacity > pipe.MAX_CAPACITY:
        raise FdtError(f"{node.name} has packets or a capacity that no pipe has")
    pipe.set_capacity(fd, capacity)
    if node.has("packets"):
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_DIRECT)
    start = 0
    for length in lengths:
        if _written(fd, data[start : start + length]) != length:
            raise FdtError(f"{node.name} has more in its queue than fits")
        start += length


def _written(fd: int, piece: bytes) -> int:
    try:
        return os.write(fd, piece)
    except BlockingIOError:
        return 0


def _open(node: Node, ends: Ends) -> Loaded:
    """Return one open file description of a pipe.

    The first of each end is the one that pipe(2) made; others are opened anew. (F_GETFL tells them apart: only open(2)
    sets O_LARGEFILE.)
    """

    def make() -> OwnedFd:
        flags = node.u32("flags") & _KEPT_FLAGS
        own = ends.unused.pop(flags & os.O_ACCMODE, None)
        if own is None:
            fresh = memfd.reopen(ends.any.fileno(), flags & os.O_ACCMODE | os.O_NONBLOCK)
        else:
            fresh = own.dup()
        try:
            # open(2) takes O_DIRECT for files only; for a pipe it is fcntl(2) that means packets by it
            fcntl.fcntl(fresh.fileno(), fcntl.F_SETFL, flags)
        except BaseException:
            fresh.close()
            raise
        return fresh

    return attempt(make, "pipe")


KINDS: tuple[Kind, ...] = (Pipe(),)
