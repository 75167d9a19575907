"""Memory of huge pages. The machine has some only if somebody gives it some: these tests do, and take them back."""

from __future__ import annotations

import atexit
import fcntl
import functools
import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import NoRoom
from fdbox.kinds.freight import Arrivals, Made
from fdbox.linux import memfd
from fdbox.linux.fd import dup
from tests.kinds.memories import see_all
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fdbox.linux.fd import OwnedFd
    from tests.kinds.conformance import World

POOL = Path("/proc/sys/vm/nr_hugepages")
WANTED = 24
PAGE = 2 << 20


#: Every process that may need them shares this lock, with what there was before; the last one gives them back. (It is
#: opened here and not in a test, which must leave nothing open.)
LOCK = (Path(tempfile.gettempdir()) / f"fdbox-hugepages-{os.geteuid()}").open("a+")
fcntl.flock(LOCK, fcntl.LOCK_SH)


@functools.cache
def give_pages() -> None:
    """See that there are huge pages, until the last process that needs them ends."""
    before = POOL.read_text()
    if int(before) < WANTED:
        LOCK.write(before)
        LOCK.flush()
        POOL.write_text(str(WANTED))


@atexit.register
def give_back() -> None:
    with LOCK:
        try:
            fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody else may need them
        LOCK.seek(0)
        if before := LOCK.readline():
            POOL.write_text(before)
            LOCK.truncate(0)


def written(fd: OwnedFd, start: int, content: bytes) -> None:
    with mmap.mmap(fd.fileno(), os.fstat(fd.fileno()).st_size) as mapped:
        mapped[start : start + len(content)] = content


def full(folder: Path) -> Entries:
    give_pages()
    fd = memfd.create("huge", 2 * PAGE, huge_page=PAGE)
    written(fd, 0, b"first page")
    written(fd, PAGE + 5, b"second page")
    os.fchmod(fd.fileno(), 0o640)
    return {"memory": fd}


def sparse(folder: Path) -> Entries:
    give_pages()
    fd = memfd.create("huge", 4 * PAGE, huge_page=PAGE)
    written(fd, 3 * PAGE, b"the last page")
    memfd.add_seals(fd.fileno(), memfd.Seals.SHRINK)
    reader = memfd.reopen(fd.fileno(), os.O_RDONLY)
    os.lseek(reader.fileno(), PAGE, os.SEEK_SET)
    return {"memory": fd, "reader": reader}


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    return [see_all(fds), os.fstat(fds["memory"]).st_blksize, os.fstat(fds["memory"]).st_blocks]


def disturb(fds: Mapping[str, int]) -> None:
    with mmap.mmap(fds["memory"], PAGE) as mapped:
        mapped[100] = 7


def sample(name: str, make: Callable[[Path], Entries], *entries: str) -> Sample:
    return Sample(
        f"hugetlb {name}",
        dict.fromkeys(entries, "hugetlb-memfd"),
        make,
        observe,
        disturb,
        root=True,
    )


SAMPLES = [
    sample("memory", full, "memory"),
    sample("memory, sparse and opened twice", sparse, "memory", "reader"),
]


@pytest.mark.root
def test_without_huge_pages_it_has_ordinary_ones_and_that_is_told(world: World) -> None:
    sealed = world.seal(world.make(SAMPLES[0]))
    component = sealed.parts[0].component
    component.child("memory@0").set_u64("page-size", 1 << 30)  # a pool that nobody fills
    arrivals = Arrivals(world.kernel, lambda token: dup(sealed.freight.sent(token)))
    (made,) = sealed.parts[0].kind.load(component, arrivals)
    sealed.thaw()
    assert isinstance(made, Made)
    with made.fd as fd:
        assert "its huge pages" in made.lost[0]
        assert "vm.nr_hugepages" in made.lost[0]
        assert os.pread(fd.fileno(), 11, PAGE + 5) == b"second page"


@pytest.mark.root
def test_its_copy_needs_room(world: World) -> None:
    entries = world.make(SAMPLES[0])
    world.kernel.free = 0
    with pytest.raises(NoRoom, match="'memory'"):
        world.seal(entries)
