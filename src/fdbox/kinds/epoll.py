"""epoll: a set of watched files (epoll(7)).

    / { compatible = "fdbox,epoll-v1";
        file@0 {
            item@0 { watched = <component file>; number; events; user-data; };
        };
    };

An item is found again by its open file *and* the number that the descriptor had when it was added (`number`). A program
that has its descriptors under the same numbers again can modify and remove its items as before; so each is added under its
old number, in a process of its own, where that number is free.
"""

from __future__ import annotations

import collections
import fcntl
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import FdtError, KernelError
from fdbox.kinds.base import Kind, Ordinary, anonymous, numbered
from fdbox.kinds.freight import Made, Place
from fdbox.linux import epoll, kcmp
from fdbox.linux.fd import OwnedFd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Company, Look, OpenFile
    from fdbox.linux.epoll import Item

_MAX_NUMBER = (1 << 31) - 1
_OUTCOME = struct.Struct("=ii")  # errno (0: all were added), the item
_UNEXPECTED = -1
#: EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP: to find something that is ready now
_ANYTHING = 0x1 | 0x2 | 0x4 | 0x2000


class Watch(NamedTuple):
    """An item to be added: a borrowed descriptor, and what it had."""

    fd: int
    number: int
    events: int
    data: int

    @property
    def is_spent(self) -> bool:
        """Whether it is EPOLLONESHOT, and has reported."""
        return bool(self.events & epoll.ONESHOT) and not self.events & ~epoll.PRIVATE_BITS


class Epoll(Ordinary):
    """A set of watched files."""

    name = "epoll"
    about = "a set of watched files, of the same box"
    keeps = "what it watches, events, user data, the descriptor numbers that items are found by"
    loses = (
        "that an edge (EPOLLET) was reported: it may be reported once more; that an EPOLLONESHOT item has reported, "
        "where its file is not ready: it may report a hang-up"
    )
    compatible = "fdbox,epoll-v1"
    is_portable = True

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return anonymous("eventpoll")(seen)

    def depends_on(self, file: OpenFile, company: Company) -> Sequence[OpenFile]:
        """Return what it watches; CannotCarry if some of that is in no entry of the box."""
        return [watched for _, watched in _watched(file, company)]

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down every item."""
        for number, (item, watched) in enumerate(_watched(file, freight.company)):
            child = node.add(f"item@{number}")
            child.set_u32s("watched", list(freight.places[watched]))
            child.set_u32("number", item.fd)
            child.set_u32("events", item.events)
            child.set_u64("user-data", item.data)

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return an epoll that watches the same."""
        watches = [_read(child, arrivals) for child in numbered(node, "item")]
        made = epoll.create()
        try:
            _add(made.fileno(), watches)
        except BaseException:
            made.close()
            raise
        return made


# --- leaving ---------------------------------------------------------------------------------------------------------


def _watched(file: OpenFile, company: Company) -> Iterator[tuple[Item, OpenFile]]:
    """Yield each item with the file that it watches."""
    seen: collections.Counter[int] = collections.Counter()
    for item in epoll.items(file.fd):
        found = _find(file, item, seen[item.fd], company)
        seen[item.fd] += 1
        if found is None:
            raise file.refuse(
                f"it watches what was descriptor {item.fd} (inode {item.inode}), which is in no entry of the box",
                "put what it watches into the same box, or remove it from the epoll",
            )
        yield item, found


def _find(file: OpenFile, item: Item, offset: int, company: Company) -> OpenFile | None:
    def order(fd: int) -> int:
        return kcmp.order_watched(fd, file.fd, item.fd, offset)

    return company.find(item.device, item.inode, order)


# --- arriving --------------------------------------------------------------------------------------------------------


def _read(node: Node, arrivals: Arrivals) -> Watch:
    place, number = node.u32s("watched"), node.u32("number")
    if len(place) != 2 or number > _MAX_NUMBER:
        raise FdtError(f"{node.name} is an item that no epoll has")
    return Watch(arrivals.file(Place(*place)), number, node.u32("events"), node.u64("user-data"))


def _add(made: int, watches: Sequence[Watch]) -> None:
    """Add items under their numbers, in a child: here the numbers are somebody else's.

    An item lives as long as its open file, not as the descriptor that it was added by; the child's end removes none.
    """
    if not watches:
        return
    reading, writing = (OwnedFd(end) for end in os.pipe2(os.O_CLOEXEC))
    with reading:
        with writing:
            child = os.fork()
            if child == 0:
                _add_and_exit(made, watches, writing.fileno())
        answer = os.read(reading.fileno(), _OUTCOME.size)
    os.waitpid(child, 0)
    if len(answer) != _OUTCOME.size:
        raise KernelError(
            "the process that adds the items of an epoll was ended", remedy="see dmesg"
        )
    code, at = _OUTCOME.unpack(answer)
    if code:
        strerror = os.strerror(code) if code > 0 else "an unexpected error"
        raise KernelError(
            f"cannot watch descriptor {watches[at].number} again: {strerror}",
            errno=max(code, 0),
            remedy="is the number above RLIMIT_NOFILE, or fs.epoll.max_user_watches reached?",
        )


def _add_and_exit(made: int, watches: Sequence[Watch], answer: int) -> None:
    """Add everything and say how it went: no more than that, for other threads' locks may be held for ever."""
    code, at = _UNEXPECTED, 0
    taken = {watch.number for watch in watches}
    try:
        made, answer = _clear(made, taken), _clear(answer, taken)
        sources = {fd: _clear(fd, taken) for fd in {watch.fd for watch in watches}}
        # What has reported comes first: to find it ready it must be the only one.
        for at in sorted(range(len(watches)), key=lambda at: not watches[at].is_spent):
            os.dup2(sources[watches[at].fd], watches[at].number)
            _add_one(made, watches[at])
        code = 0
    except KernelError as error:
        code = error.errno or _UNEXPECTED
    except OSError as error:
        code = error.errno or _UNEXPECTED
    finally:
        os.write(answer, _OUTCOME.pack(code, at))
        os._exit(0)


def _clear(fd: int, taken: set[int]) -> int:
    """Return a duplicate whose number is not among those that are going to be used."""
    while (fd := fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0 if fd not in taken else fd + 1)) in taken:
        pass
    return fd


def _add_one(made: int, watch: Watch) -> None:
    """Add an item; one that has reported is made to report, if its file is ready for anything."""
    if not watch.is_spent:
        epoll.add(made, watch.number, watch.events, watch.data)
        return
    epoll.add(made, watch.number, watch.events | _ANYTHING, watch.data)
    if not epoll.wait(made):
        epoll.modify(made, watch.number, watch.events, watch.data)


KINDS: tuple[Kind, ...] = (Epoll(),)
