"""Real descriptors, each of exactly one kind."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import stat
import tempfile
from typing import TYPE_CHECKING

import pytest

from fdbox.kinds import registry
from fdbox.kinds.base import glance, look
from fdbox.kinds.others import OTHERS, UNKNOWN
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import Carriage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_IO_URING_SETUP, SYS_USERFAULTFD = 425, 323


def called(function: str, *arguments: object) -> OwnedFd:
    fd = getattr(LIBC, function)(*arguments)
    if fd < 0:
        pytest.fail(f"{function}: {os.strerror(ctypes.get_errno())}")
    return OwnedFd(fd)


def opened(path: str, flags: int) -> OwnedFd:
    return OwnedFd(os.open(path, flags | os.O_CLOEXEC))


def pipe() -> OwnedFd:
    reading, writing = os.pipe()
    os.close(writing)
    return OwnedFd(reading)


def signalfd() -> OwnedFd:
    mask = (ctypes.c_ulong * 16)()
    LIBC.sigaddset(mask, signal.SIGUSR1)
    return called("signalfd", -1, mask, os.O_CLOEXEC)


def listener() -> OwnedFd:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return OwnedFd(os.dup(server.fileno()))


def epoll() -> OwnedFd:
    with select.epoll() as made:
        return OwnedFd(os.dup(made.fileno()))


def tmpfs_file() -> OwnedFd:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        return OwnedFd(os.dup(file.fileno()))


def io_uring() -> OwnedFd:
    parameters = (ctypes.c_char * 120)()
    return called("syscall", SYS_IO_URING_SETUP, 1, parameters)


MADE: dict[str, Callable[[], OwnedFd]] = {
    "memfd": lambda: memfd.create("m", 5),
    "path": lambda: opened("/usr", os.O_PATH),
    "hugetlb-memfd": lambda: memfd.create("h", huge=True),
    "tmpfs-file": tmpfs_file,
    "regular-file": lambda: opened(__file__, os.O_RDONLY),
    "directory": lambda: opened("/usr", os.O_RDONLY | os.O_DIRECTORY),
    "pipe": pipe,
    "socket": listener,
    "character-device": lambda: opened("/dev/null", os.O_RDWR),
    "eventfd": lambda: OwnedFd(os.eventfd(3)),
    "timerfd": lambda: called("timerfd_create", 1, os.O_CLOEXEC),
    "signalfd": signalfd,
    "epoll": epoll,
    "inotify": lambda: called("inotify_init1", os.O_CLOEXEC),
    "io-uring": io_uring,
    "pidfd": lambda: OwnedFd(os.pidfd_open(os.getpid())),
}
NEEDS_ROOT: dict[str, Callable[[], OwnedFd]] = {
    "fanotify": lambda: called("fanotify_init", 0, os.O_RDONLY),
    "unknown": lambda: called("syscall", SYS_USERFAULTFD, os.O_CLOEXEC),
}


@pytest.fixture
def held() -> Iterator[list[OwnedFd]]:
    made: list[OwnedFd] = []
    yield made
    close_all(made)


def check(name: str, fd: OwnedFd) -> None:
    seen = look(fd.fileno())
    assert [kind.name for kind in registry.KINDS if kind.recognise(seen)] == (
        [] if name == "unknown" else [name]
    )
    kind = registry.recognise(seen)
    description = kind.describe(seen)
    assert description.kind == name
    has_bytes = name in ("memfd", "hugetlb-memfd", "tmpfs-file", "regular-file")
    assert (description.size is not None) == has_bytes
    carriage = kind.carriage(seen, Carriage("kernel"))
    assert (carriage.carrier == "kernel") == (name in registry.CARRIED)
    if carriage.carrier is None:
        assert carriage.obstacle
        assert carriage.remedy


@pytest.mark.parametrize("name", MADE)
def test_it_is_of_this_kind_and_of_no_other(name: str, held: list[OwnedFd]) -> None:
    held.append(MADE[name]())
    check(name, held[0])


@pytest.mark.root
@pytest.mark.parametrize("name", NEEDS_ROOT)
def test_what_root_makes_is_of_this_kind_and_of_no_other(name: str, held: list[OwnedFd]) -> None:
    held.append(NEEDS_ROOT[name]())
    check(name, held[0])


@pytest.mark.root
def test_a_block_device_is_known(tmp_path: Path, held: list[OwnedFd]) -> None:
    """Containers may not open one, so that it is looked at without."""
    node = tmp_path / "block"
    os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(7, 0))
    held.append(opened(str(node), os.O_PATH))
    seen = look(held[0].fileno())._replace(flags=os.O_RDONLY)
    assert [kind.name for kind in registry.KINDS if kind.recognise(seen)] == ["block-device"]


def test_every_kind_was_made() -> None:
    assert {kind.name for kind in (*registry.KINDS, UNKNOWN)} == {
        *MADE,
        *NEEDS_ROOT,
        "block-device",
    }


def test_the_reason_for_a_name_is_found_again() -> None:
    assert [registry.by_name(kind.name) for kind in OTHERS] == list(OTHERS)
    assert registry.by_name("no such kind") is UNKNOWN


@pytest.mark.parametrize("name", [name for name in MADE if name != "path"])
def test_only_what_has_a_path_may_block(name: str, held: list[OwnedFd]) -> None:
    held.append(MADE[name]())
    has_path = name in ("regular-file", "directory", "character-device")
    assert (glance(held[0].fileno()) is None) == has_path
