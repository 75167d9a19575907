"""hugetlb-memfd: memory of huge pages, which no kernel carries: its bytes travel in ordinary pages.

The component is as `_memory.py` has it, always with `extents`, and in each `memory@N`

    name;                            as it was given to memfd_create()
    page-size;                       of one huge page, bytes
    allocated;                       bytes of the huge pages that it had

hugetlbfs tells nobody where its holes are: SEEK_DATA takes all for data, and mincore(2) sees but one mapping. So each
page is read, and one that is all zero stays behind; it is a hole afterwards, unless the memory had no hole at all.

Whoever touches a page that the pool does not have gets SIGBUS, so every page is taken by fallocate(2) first. If the
next kernel has too few, ordinary pages take their place, and that is told: the bytes are worth more than their pages.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from fdbox.errors import FdtError, KernelError, NoRoom
from fdbox.kinds import _dense, _memory
from fdbox.kinds._memory import Memories
from fdbox.kinds.freight import Made
from fdbox.kinds.memfd import label, write_name
from fdbox.linux import memfd
from fdbox.model import Description

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.fdt.tree import Node
    from fdbox.kinds._memory import Group
    from fdbox.kinds.base import Kind
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd

_PIECE = 1 << 20
_REMEDY = "give the next kernel enough before fdbox starts: hugepages= or vm.nr_hugepages"


class Hugetlb(Memories):
    """Memory of huge pages (MFD_HUGETLB of memfd_create(2)), and files of hugetlbfs."""

    name = "hugetlb-memfd"
    about = "anonymous memory of huge pages, or a file of hugetlbfs"
    keeps = (
        "bytes, size of the pages, size, seals, name, mode, owner, and of each open file description "
        "access mode, flags, position"
    )
    loses = (
        "pages that are all zero become holes, if there is a hole; a file's name on hugetlbfs; "
        "reservations, file locks, times; the huge pages, if the next kernel has too few"
    )
    compatible = "fdbox,hugetlb-memfd-v1"
    is_portable = True

    def recognise(self, seen: Look) -> bool:
        """Return whether it is of hugetlbfs."""
        return _memory.is_regular(seen) and memfd.is_hugetlb(seen.fd)

    def describe(self, seen: Look) -> Description:
        """Return its size, and the name that it was made with."""
        return Description(self.name, seen.status.st_size, label(seen.link))

    def send(self, group: Group, node: Node, freight: Freight) -> tuple[str, ...]:
        """Send the pages that are not all zero."""
        file = group.first
        status = os.fstat(file.fd)
        _dense.send(file, node, freight, list(_used(file.fd, status)))
        node.set_u64("page-size", status.st_blksize)
        node.set_u64("allocated", status.st_blocks * 512)
        return (*write_name(file, node), *_lost_name(file, status))

    def same_bytes(self, file: OpenFile, saved: Node, freight: Freight) -> bool:
        """Return whether the bytes are those of the copy, and all others zero."""
        size = saved.u64("size")
        return _dense.same(file, saved, freight, [(0, size)] if size else [])

    def make(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return a new memory of huge pages, or of ordinary ones if there are too few."""
        page = node.u64("page-size")
        if not page or page & (page - 1):
            raise FdtError(f"{node.name} has pages of {page} bytes")
        try:
            return _huge(node, arrivals, page)
        except (OSError, KernelError) as error:
            reason = error.message if isinstance(error, KernelError) else error.strerror
            lost = f"its huge pages of {page} bytes, it has ordinary ones now: {reason} ({_REMEDY})"
            return Made(_ordinary(node, arrivals), (lost,))


def _used(fd: int, status: os.stat_result) -> Iterator[tuple[int, int]]:
    """Yield offset and length of every run of pages that are not all zero."""
    page = status.st_blksize
    start = end = 0
    with memfd.reopen(fd, os.O_RDONLY) as own:
        for at in range(0, status.st_size, page):
            if _is_zero(own.fileno(), at, page):
                continue
            if at != end:
                if end > start:
                    yield start, end - start
                start = at
            end = at + page
    if end > start:
        yield start, end - start


def _is_zero(fd: int, start: int, length: int) -> bool:
    end = start + length
    return all(
        _dense.is_zero(os.pread(fd, min(_PIECE, end - at), at)) for at in range(start, end, _PIECE)
    )


def _lost_name(file: OpenFile, status: os.stat_result) -> tuple[str, ...]:
    if not status.st_nlink:
        return ()
    return (f"its name {file.look.link!r}: hugetlbfs is empty in the next kernel",)


# --- arriving --------------------------------------------------------------------------------------------------------


def _huge(node: Node, arrivals: Arrivals, page: int) -> OwnedFd:
    memory = memfd.create(node.text("name"), huge_page=page)
    fd = memory.fileno()

    def write(buffer: memoryview, offset: int) -> int:
        """Write to one page through a mapping: there is no other way on hugetlbfs."""
        start, within = offset // page * page, offset % page
        taken = min(len(buffer), page - within)
        with mmap.mmap(fd, page, offset=start) as mapped:
            mapped[within : within + taken] = buffer[:taken]
        return taken

    try:
        _take_pages(node, fd)
    except BaseException:
        memory.close()
        raise
    return _memory.fill(node, arrivals, memory, write)


def _take_pages(node: Node, fd: int) -> None:
    """Give a memory its pages, or raise ENOSPC: all, if it had no hole; else where its data goes."""
    size = node.u64("size")
    extents = _dense.read_extents(node)
    os.ftruncate(fd, size)
    whole = [(0, size)] if size and node.u64("allocated") >= size else extents
    for start, length in whole:
        os.posix_fallocate(fd, start, length)


def _ordinary(node: Node, arrivals: Arrivals) -> OwnedFd:
    wanted = sum(length for _, length in _dense.read_extents(node))
    if wanted > (free := arrivals.kernel.free_memory()):
        raise NoRoom(
            f"there are too few huge pages for it, and of ordinary ones {free} bytes are free, not {wanted}",
            remedy=_REMEDY,
        )
    return _memory.fill(node, arrivals, memfd.create(node.text("name")))


KINDS: tuple[Kind, ...] = (Hugetlb(),)
