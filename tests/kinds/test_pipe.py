from __future__ import annotations

import fcntl
import hashlib
import os
import select
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import FdtError
from fdbox.fdt.tree import Node
from fdbox.handover import seal
from fdbox.kinds import registry
from fdbox.kinds.freight import Arrivals
from fdbox.linux import kcmp, memfd, pipe
from fdbox.linux.fd import OwnedFd, close_all, queued
from tests.fakes.carrier import FakeKernel
from tests.kinds.conformance import BOX, World, described
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

KIND = registry.CARRIED["pipe"]


def ends(*names: str, flags: int = 0, write: tuple[bytes, ...] = (), capacity: int = 0) -> Any:  # noqa: ANN401 - a function
    """Return what makes a pipe of which the ends named are in the box."""

    def make(folder: Path) -> Entries:
        reading, writing = pipe.create(flags)
        if capacity:
            pipe.set_capacity(writing.fileno(), capacity)
        for piece in write:
            assert os.write(writing.fileno(), piece) == len(piece)
        found = {"read": reading, "write": writing}
        close_all(fd for name, fd in found.items() if name not in names)
        return {name: found[name] for name in names}

    return make


def drain(fd: int) -> list[str]:
    """Return what single reads give, and "end" where nobody can write any more."""
    pieces: list[str] = []
    os.set_blocking(fd, False)
    while True:
        try:
            piece = os.read(fd, 1 << 21)
        except BlockingIOError:
            return pieces
        pieces.append(f"{len(piece)} {hashlib.sha256(piece).hexdigest()}")
        if not piece:
            return pieces


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    flags = {name: fcntl.fcntl(fd, fcntl.F_GETFL) for name, fd in fds.items()}
    capacity = [pipe.capacity(fd) for fd in fds.values()]
    if "read" not in fds:
        poller = select.poll()
        poller.register(fds["write"], select.POLLOUT)
        broken = bool(poller.poll(0)[0][1] & select.POLLERR)
        with memfd.reopen(fds["write"], os.O_RDONLY | os.O_NONBLOCK) as reading:
            return [flags, capacity, broken, drain(reading.fileno())]
    queued = drain(fds["read"])
    if "write" in fds:
        assert os.write(fds["write"], b"connected") == 9
        queued += drain(fds["read"])
    return [flags, capacity, queued]


def disturb(fds: Mapping[str, int]) -> None:
    """Read a byte where there is one; a write might find the pipe full."""
    if queued(fds["read"]):
        os.read(fds["read"], 1)
    else:
        os.write(fds["write"], b"late")


BOTH = {"read": "pipe", "write": "pipe"}


def pair(name: str, make: Callable[[Path], Entries]) -> Sample:
    return Sample(f"pipe {name}", BOTH, make, observe, disturb)


def reopened(folder: Path) -> Entries:
    """Two readers with flags of their own, and a descriptor that can do both."""
    entries: Entries = ends("read", "write", write=(b"shared",))(folder)
    number = entries["read"].fileno()
    again = memfd.reopen(number, os.O_RDONLY | os.O_NONBLOCK)
    both = memfd.reopen(number, os.O_RDWR)
    return {**entries, "again": again, "both": both, "dup": again.dup()}


def observe_reopened(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    flags = {name: fcntl.fcntl(fd, fcntl.F_GETFL) for name, fd in fds.items()}
    shared = kcmp.same_file(fds["again"], fds["dup"])
    first, second = os.read(fds["again"], 3), os.read(fds["both"], 3)
    os.write(fds["both"], b"more")
    return [flags, shared, str(first), str(second), str(os.read(fds["read"], 9))]


SAMPLES = [
    pair("empty", ends("read", "write")),
    pair(
        "with bytes", ends("read", "write", flags=os.O_NONBLOCK, write=(b"a", b"bc", b"x" * 9000))
    ),
    pair(
        "in packet mode", ends("read", "write", flags=os.O_DIRECT, write=(b"a", b"xx", b"x" * 4096))
    ),
    pair("with one packet", ends("read", "write", flags=os.O_DIRECT, write=(b"xx",))),
    pair("large and full", ends("read", "write", write=(b"x" * (1 << 20),), capacity=1 << 20)),
    pair("small", ends("read", "write", write=(b"x" * 4096,), capacity=4096)),
    Sample("pipe reading end", {"read": "pipe"}, ends("read", write=(b"left",)), observe, disturb),
    Sample(
        "pipe reading end with packets",
        {"read": "pipe"},
        ends("read", flags=os.O_DIRECT, write=(b"xxx",)),
        lambda fds, folder: [str(os.read(fds["read"], 1)), drain(fds["read"])],
    ),
    Sample("pipe writing end", {"write": "pipe"}, ends("write"), observe),
    Sample(
        "pipe opened several times",
        dict.fromkeys(("read", "write", "again", "both", "dup"), "pipe"),
        reopened,
        observe_reopened,
        lambda fds: void(os.write(fds["both"], b"late")),
    ),
]


def void(_: object) -> None:
    """Let a lambda have no value."""


def test_a_writing_end_alone_still_brings_what_a_reader_elsewhere_has_not_read(
    world: World,
) -> None:
    reading, writing = pipe.create()
    with reading, writing:
        os.write(writing.fileno(), b"queued")
        sealed = seal.seal(BOX, described({"w": writing}), world.carrier, world.kernel)
        assert sealed.parts[0].component.child("pipe@0").data("data") == b"queued"
        sealed.thaw()
        assert os.read(reading.fileno(), 9) == b"queued"


def component(**wrong: object) -> Node:
    root = Node("")
    one = root.add("pipe@0")
    one.set_u32("capacity", 4096)
    one.set_data("data", b"abc")
    file = root.add("file@0")
    file.set_u32("pipe", 0)
    file.set_u32("flags", os.O_RDONLY)
    for name, value in wrong.items():
        if isinstance(value, bytes):
            one.set_data(name, value)
        elif isinstance(value, list):
            one.set_u32s(name, value)
        else:
            one.set_u32(name, value)  # type: ignore[arg-type]
    return root


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": b"x" * 4097},
        {"packets": [1, 1]},
        {"packets": [4]},
        {"capacity": (1 << 31) + 1},
        {"data": b"x" * 20, "packets": [1] * 20, "capacity": 4096},
    ],
)
def test_a_queue_that_no_pipe_has_is_refused(wrong: dict[str, object]) -> None:
    (loaded,) = KIND.load(component(**wrong), Arrivals(FakeKernel(), OwnedFd))
    assert isinstance(loaded, FdtError)
