"""What a client, another user, or whoever starts the daemon may do to it: nobody else's descriptors are lost for that."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.linux import kcmp, memfd
from fdbox.linux.fd import OwnedFd, close_all
from tests.processes import Serving, serve, service_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

#: seconds that closing a socket takes whose peer reads nothing
LINGER = 10


@pytest.fixture
def serving() -> Iterator[Serving]:
    made = Serving()
    yield made
    made.stop()


@contextlib.contextmanager
def lingering() -> Iterator[socket.socket]:
    """Yield a socket whose last close(2) takes LINGER seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(b"x" * 65536)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))
        with theirs:
            yield ours


def still_there(serving: Serving, fd: OwnedFd) -> None:
    with fdbox.connect(serving.socket) as client, client.existing_box("good").get("m") as got:
        assert kcmp.same_file(got.fileno(), fd.fileno())


@pytest.fixture
def good(serving: Serving) -> Iterator[OwnedFd]:
    with memfd.create("good") as fd:
        with fdbox.connect(serving.socket) as client:
            client.box("good").put("m", fd)
        yield fd
        still_there(serving, fd)


def test_a_descriptor_that_cannot_be_looked_at_any_more(serving: Serving, good: OwnedFd) -> None:
    process = subprocess.Popen(["sleep", "100"])
    folder = OwnedFd(os.open(f"/proc/{process.pid}/fd", os.O_RDONLY | os.O_DIRECTORY))
    with fdbox.connect(serving.socket) as client, folder, memfd.create("other") as other:
        box = client.box("bad")
        box.put_many({"x": folder, "y": folder, "z": other})
        process.kill()
        process.wait()
        with pytest.raises(FileNotFoundError):
            os.fstat(folder.fileno())
        for again in (serving.kill_service, serving.reexec, serving.kill_service, serving.reexec):
            again()
            assert [(one.name, one.kind) for one in box.list()] == [
                ("x", "directory"),
                ("y", "directory"),
                ("z", "memfd"),
            ]
            still_there(serving, good)
        box.put("x", other, replace=True)
        assert [one.kind for one in box.list()] == ["memfd", "directory", "memfd"]
        box.delete()
    serving.until(lambda: not any(link.startswith("/proc") for link in serving.held()))


def test_what_is_over_quota_takes_nobody_elses_room() -> None:
    """Many connections at once put more than there is room for; what is acknowledged is kept."""
    serving = Serving(lambda folder: ["prlimit", "--nofile=1600:1600", *serve(folder)])
    with fdbox.connect(serving.socket) as client:
        client.box("b")
    made = {f"{n}": memfd.create(f"f-{n}") for n in range(900)}
    acknowledged: list[str] = []
    refused: list[fdbox.FdboxError] = []

    def put(part: list[str]) -> None:
        with fdbox.connect(serving.socket) as client:
            try:
                client.existing_box("b").put_many({name: made[name] for name in part})
            except fdbox.FdboxError as error:
                refused.append(error)
            else:
                acknowledged.extend(part)

    names = list(made)
    threads = [
        threading.Thread(target=put, args=(names[at : at + 30],)) for at in range(0, 900, 30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {type(error) for error in refused} == {fdbox.QuotaExceeded}
    serving.kill_service()
    with fdbox.connect(serving.socket) as client:
        found = client.existing_box("b").get_many(acknowledged)
    assert len(found) >= 300
    assert all(kcmp.same_file(fd.fileno(), made[name].fileno()) for name, fd in found.items())
    close_all([*found.values(), *made.values()])
    assert "no room" not in serving.log()
    serving.stop()


@pytest.mark.usefixtures("good")
def test_what_takes_long_to_close_holds_nobody_up(serving: Serving) -> None:
    with fdbox.connect(serving.socket) as client, lingering() as slow:
        box = client.box("slow")
        box.put("socket", slow)
        slow.close()
        began = time.monotonic()
        box.delete()
        time.sleep(0.1)
        with memfd.create("m") as fd:
            client.box("other").put("m", fd)
        serving.kill_service()
        serving.reexec()
        assert time.monotonic() - began < LINGER


@pytest.mark.root
def test_another_user_does_not_reach_the_keeper(serving: Serving) -> None:
    content = f"/proc/{service_of(serving.keeper)}/environ"
    with open(content, "rb") as environ:  # noqa: PTH123 - bytes that pathlib reads no better
        address = dict(one.split(b"=", 1) for one in environ.read().split(b"\0") if one)
    program = (
        "import os, socket, sys; os.setuid(65534); "
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, address[b"NOTIFY_SOCKET"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionError" in done.stderr


def test_who_reads_what_the_keeper_says_may_go(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    program = f"import os, sys; os.dup2({writing}, 2); os.execvp(sys.argv[1], sys.argv[1:])"
    serving = Serving(
        lambda folder: [sys.executable, "-c", program, *serve(folder)], pass_fds=[writing]
    )
    os.close(reading)
    os.close(writing)
    for _ in range(3):
        serving.kill_service()
    serving.stop()


def test_children_that_are_ignored_are_none_of_ours() -> None:
    program = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    serving = Serving(lambda folder: [sys.executable, "-c", program, *serve(folder)])
    serving.kill_service()
    serving.stop()


def test_without_a_keeper_nothing_is_replaced() -> None:
    serving = Serving()
    with fdbox.connect(serving.socket) as client, memfd.create("m") as fd:
        client.box("b").put("m", fd)
        service = serving.kill_keeper()
        with pytest.raises(fdbox.UpgradeRefused, match="keeper is gone"):
            client.reexec()
        client.existing_box("b").get("m").close()
    os.kill(service, signal.SIGTERM)
    end = time.monotonic() + 20
    while serving.socket.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    serving.clean_up()


@pytest.mark.parametrize("pause", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2])
def test_who_is_told_to_end_while_it_starts_ends(pause: float, tmp_path: Path) -> None:
    serving = Serving()
    os.kill(service_of(serving.keeper), signal.SIGKILL)
    time.sleep(pause)
    serving.stop()


def test_hang_ups_while_it_starts_do_no_harm(serving: Serving, good: OwnedFd) -> None:
    os.kill(service_of(serving.keeper), signal.SIGKILL)
    for _ in range(30):
        os.kill(serving.keeper, signal.SIGHUP)
        time.sleep(0.01)
    serving.until(serving.answers)
    assert serving.log().count("starting it again") == 1
    still_there(serving, good)
