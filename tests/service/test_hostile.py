"""1,500 connections that mean harm, against a real daemon: it keeps no descriptor of theirs, and a good client notices nothing."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.linux import kcmp, memfd
from tests.processes import service_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

CONNECTIONS = 1500
#: of those that stay, how many at once; a user may have 256
AT_ONCE = 200
DESCRIPTORS = 20
CONFIG = "[server]\nidle_timeout = 2.0\n"

CREATE = b'{"method":"io.fdbox.CreateBox","parameters":{"box":"b"}}\0'
PUT = b'{"method":"io.fdbox.Put","parameters":{"box":"%s","entries":[%s]}}\0'
GOOD_ENTRY = b'{"name":"e","fileDescriptor":0}'
MESSAGES = {
    "nothing": b"",
    "one byte": b"x",
    "half a message": PUT[:30],
    "an empty message": b"\0",
    "no JSON": b"{]\0",
    "deep JSON": b"[" * 5000 + b"\0",
    "no object": b"[1,2]\0",
    "no method": b'{"parameters":{}}\0',
    "an unknown key": b'{"method":"io.fdbox.Status","what":1}\0',
    "no text": b'{"method":"\xff\xfe"}\0',
    "an unknown method": b'{"method":"io.fdbox.Fly"}\0',
    "a box that is not there": PUT % (b"none", GOOD_ENTRY),
    "an index that is not there": PUT % (b"b", b'{"name":"e","fileDescriptor":99}'),
    "a negative index": PUT % (b"b", b'{"name":"e","fileDescriptor":-1}'),
    "a huge index": PUT % (b"b", b'{"name":"e","fileDescriptor":18446744073709551616}'),
    "an index twice": PUT % (b"b", GOOD_ENTRY + b',{"name":"f","fileDescriptor":0}'),
    "a name that cannot be": PUT % (b"b", b'{"name":"a/b","fileDescriptor":0}'),
    "a long name": PUT % (b"b", b'{"name":"%s","fileDescriptor":0}' % (b"n" * 256)),
    "descriptors that nobody asked for": b'{"method":"io.fdbox.Status","parameters":{}}\0',
    "an upgrade": b'{"method":"io.fdbox.Status","parameters":{},"upgrade":true}\0',
    "a stream without more": b'{"method":"io.fdbox.Subscribe","parameters":{"name":"s"}}\0',
    "a stream": b'{"method":"io.fdbox.Subscribe","parameters":{"name":"s"},"more":true}\0',
    "many at once": b'{"method":"io.fdbox.ListBoxes","parameters":{}}\0' * 200,
    "a message and a half": CREATE + PUT[:9],
}


@pytest.fixture
def daemon_config(socket_path: Path) -> Path:
    path = socket_path.with_name("config.toml")
    path.write_text(CONFIG)
    return path


def held_by(keeper: int) -> dict[str, str]:
    """Return the descriptors of the service, and of the keeper that has started it."""
    return {**held_by_one(service_of(keeper)), **held_by_one(keeper)}


def held_by_one(pid: int) -> dict[str, str]:
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed while we look
            found[f"{pid}/{fd.name}"] = str(fd.readlink())
    return found


def attack(path: Path, number: int, descriptors: list[int]) -> socket.socket:
    """Say something bad with descriptors, then read on, close, or stay without a word."""
    messages = list(MESSAGES.values())
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    text = messages[number % len(messages)]
    sock.setblocking(False)
    with contextlib.suppress(OSError):  # it has hung up on us: right so
        if text:
            sock.sendmsg([text], rights)
        if number % 3 == 0:
            sock.sendmsg([b"more"], rights)  # in the middle of a message, or after it
    return sock


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    made = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(DESCRIPTORS)]
    yield made
    for fd in made:
        os.close(fd)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_hostile_connections_leave_nothing(
    socket_path: Path, daemon_process: subprocess.Popen[str], descriptors: list[int]
) -> None:
    with fdbox.connect(socket_path) as good, memfd.create("precious", 10) as precious:
        box = good.box("good")
        box.put("precious", precious)
        before = held_by(daemon_process.pid)
        staying: list[socket.socket] = []
        for number in range(CONNECTIONS):
            sock = attack(socket_path, number, descriptors)
            if number % 2:
                sock.close()
            else:
                staying.append(sock)
            if len(staying) == AT_ONCE:
                staying.pop(0).close()
            if number % 50 == 0:
                with box.get("precious") as got:
                    assert kcmp.same_file(got.fileno(), precious.fileno())
        assert len(held_by(daemon_process.pid)) > len(before), "some of them are still there"
        # Those who stay without a word may stay, but not with a descriptor of theirs in the daemon.
        until(lambda: "/dev/null" not in theirs(daemon_process.pid, before))
        for sock in staying:
            sock.close()
        until(lambda: held_by(daemon_process.pid) == before)
        assert [entry.name for entry in box.list()] == ["precious"]
        assert [each.name for each in good.boxes() if each.entries] == ["good"]


def theirs(pid: int, before: dict[str, str]) -> list[str]:
    return [target for fd, target in held_by(pid).items() if before.get(fd) != target]


def until(good: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not good():
        assert time.monotonic() < end
        time.sleep(0.05)
