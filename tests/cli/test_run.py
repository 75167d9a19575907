"""`fdbox run` with programs that nobody here wrote: systemd-notify, libsystemd, and a web server."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.processes import Serving, links_of
from tests.service.running import Running, children, until
from tests.vm import debian

import fdbox
from fdbox.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBSYSTEMD = "/usr/lib/x86_64-linux-gnu/libsystemd.so.0"
LIGHTTPD = "/usr/sbin/lighttpd"
RESTARTS = 10
CLIENTS = 6
REQUESTS = 3  # on one connection


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run"], "no program to run"),
        (["run", "--max-fds", "0", "--", "true"], "'0' is not a number from 1"),
        (["run", "--max-fds", "x", "--", "true"], "'x' is not a number from 1"),
        (["run", "--max-fds", "100000", "--", "true"], "is not a number from 1"),
        (["run", "--restart", "often", "--", "true"], "often"),
    ],
)
def test_what_makes_no_sense(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 2
    assert complaint in capsys.readouterr().err


def test_without_a_daemon_there_is_no_box(socket_path: Path) -> None:
    with Running(["true"], "--box", "b", "--socket", str(socket_path)) as running:
        assert running.end() == fdbox.ConnectionLost.exit_status
        assert "no daemon" in running.log


@pytest.fixture
def serving() -> Iterator[Serving]:
    made = Serving()
    yield made
    made.stop()


@pytest.fixture(params=["own", "box"])
def where(request: pytest.FixtureRequest) -> list[str]:
    """Return the options for a store of its own, and for one in a box."""
    if request.param == "own":
        return []
    serving: Serving = request.getfixturevalue("serving")
    return ["--box", "b", "--socket", str(serving.socket)]


@pytest.fixture(scope="session")
def systemd_notify() -> str:
    root = debian.unpacked("systemd", "trixie")
    return shlex.join(debian.command(root, "usr/bin/systemd-notify"))


@pytest.mark.root
@pytest.mark.slow
def test_systemd_notify_stores_and_removes(
    systemd_notify: str, where: list[str], tmp_path: Path
) -> None:
    script = f"""
notify() {{ {systemd_notify} "$@" || exit 1; }}
case "$LISTEN_FDNAMES" in
"")
    notify --version | head -n 1
    echo content > {tmp_path}/file
    notify --ready --status=up --pid=$$
    notify --fd=7 --fdname=data FDPOLL=0 7<{tmp_path}/file
    notify --fd=7 --fd=8 --fdname=more 7</dev/null 8<{tmp_path}
    notify --fd=7 7</dev/zero
    rm {tmp_path}/file
    exit 3;;
data:more:more:stored)
    test $LISTEN_PID = $$ || exit 1
    echo "$LISTEN_FDS: $(cat <&3)"
    notify FDSTOREREMOVE=1 FDNAME=more
    exit 3;;
*)
    echo "$LISTEN_FDS $LISTEN_FDNAMES"
    notify --reloading
    notify --stopping;;
esac
"""
    with Running(["sh", "-c", script], *where) as running:
        name, version, *_ = running.line().split()
        assert (name, int(version) >= 254) == ("systemd", True)
        assert running.line() == "4: content"
        assert running.line() == "2 data:stored"
        assert running.end() == 0


@pytest.mark.root
@pytest.mark.slow
def test_systemd_notify_is_the_program_itself(systemd_notify: str) -> None:
    """As root it speaks in the name of its parent, and that is `fdbox run`."""
    command = [*shlex.split(systemd_notify), "--pid", "--fd=0", "--fdname=x"]
    with Running(command, "--max-fds", "1") as running:
        assert running.end() == 0
        assert "not heard" not in running.log


C_PROGRAM = """
import ctypes, os, sys
lib = ctypes.CDLL(sys.argv[1])

def check(result):
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result

given = ctypes.POINTER(ctypes.c_char_p)()
count = check(lib.sd_listen_fds_with_names(1, ctypes.byref(given)))
names = [given[i].decode() for i in range(count)]
print(count, *names, *[os.pread(3 + i, 99, 0).decode() for i in range(count)], flush=True)
if not names:
    fds = [os.memfd_create("m") for _ in range(3)]
    for at, fd in enumerate(fds):
        os.write(fd, b"content-%d" % at)
    numbers = (ctypes.c_int * 2)(*fds[:2])
    check(lib.sd_pid_notify_with_fds(0, 0, b"FDSTORE=1\\nFDNAME=pair", numbers, 2)) or sys.exit(1)
    check(lib.sd_pid_notify_with_fds(0, 0, b"FDSTORE=1\\nFDNAME=single", (ctypes.c_int * 1)(fds[2]), 1))
elif len(names) == 3:
    check(lib.sd_notify(0, b"FDSTOREREMOVE=1\\nFDNAME=pair\\nWATCHDOG=1"))
else:
    sys.exit(0)
check(lib.sd_notify_barrier(0, ctypes.c_uint64(5000000))) or sys.exit(1)
sys.exit(3)
"""


@pytest.mark.root
@pytest.mark.slow
def test_libsystemd_stores_and_gets_back(where: list[str]) -> None:
    debian.ensure_programs({LIBSYSTEMD: "libsystemd0"})
    command = [sys.executable, "-I", "-S", "-c", C_PROGRAM, LIBSYSTEMD]
    with Running(command, *where) as running:
        assert running.line() == "0"
        assert running.line() == "3 pair pair single content-0 content-1 content-2"
        assert running.line() == "1 single content-2"
        assert running.end() == 0


# --- a web server ----------------------------------------------------------------------------------------------------


@dataclass
class Client:
    """One that asks again and again."""

    port: int
    connections: int = 0
    requests: int = 0
    resets: int = 0
    refused: int = 0
    longest: float = 0.0
    failure: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                self.connect()
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.failure = error

    def connect(self) -> None:
        began = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", self.port), 30) as sock:
                self.connections += 1
                for _ in range(REQUESTS):
                    self.ask(sock)
        except ConnectionRefusedError:
            self.refused += 1
        except (ConnectionResetError, BrokenPipeError, EOFError):  # it was killed while it answered
            self.resets += 1
        self.longest = max(self.longest, time.monotonic() - began)

    def ask(self, sock: socket.socket) -> None:
        sock.sendall(b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"what it serves"):
            if not (got := sock.recv(4096)):
                raise EOFError
            answer += got
        assert answer.startswith(b"HTTP/1.1 200 OK")
        self.requests += 1


@pytest.mark.root
@pytest.mark.slow
def test_a_web_server_is_restarted_and_nobody_is_refused(serving: Serving, tmp_path: Path) -> None:
    debian.ensure_programs({LIGHTTPD: "lighttpd"})
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port: int = listener.getsockname()[1]
        ours = str(Path(f"/proc/self/fd/{listener.fileno()}").readlink())
        with fdbox.connect(serving.socket) as client:
            client.box("web").put("http", listener)
    (tmp_path / "file").write_text("what it serves")
    configuration = tmp_path / "lighttpd.conf"
    configuration.write_text(
        f'server.document-root = "{tmp_path}"\n'
        f'server.bind = "127.0.0.1"\nserver.port = {port}\n'
        'server.systemd-socket-activation = "enable"\n'
    )
    command = [LIGHTTPD, "-D", "-f", str(configuration)]
    options = ["--box", "web", "--restart", "always", "--socket", str(serving.socket)]
    clients = [Client(port) for _ in range(CLIENTS)]
    stop = threading.Event()
    threads = [threading.Thread(target=one.run, args=(stop,)) for one in clients]
    with Running(command, *options) as running:
        until(lambda: children(running.process.pid) != [])
        for thread in threads:
            thread.start()
        try:
            for number in range(RESTARTS):
                kill_after_some_work(running, clients, ours, number)
            until_served(clients, 100)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        running.terminate()  # lighttpd has several statuses for that
        assert running.log.count("started again") == RESTARTS
    report(clients)


def until_served(clients: list[Client], more: int) -> None:
    before = sum(one.requests for one in clients)
    until(lambda: sum(one.requests for one in clients) >= before + more)


def kill_after_some_work(
    running: Running, clients: list[Client], listener: str, number: int
) -> None:
    until(lambda: bool(children(running.process.pid)))
    server = running.child()
    began = time.monotonic()
    until_served(clients, 100)
    assert listener in links_of(server), "it listens at the socket that it was given"
    until(lambda: time.monotonic() - began > 1.1)  # else the pauses grow
    os.kill(server, (signal.SIGKILL, signal.SIGTERM)[number % 2])
    until(lambda: server not in children(running.process.pid))


def report(clients: list[Client]) -> None:
    assert [one.failure for one in clients if one.failure] == []
    refused = sum(one.refused for one in clients)
    resets = sum(one.resets for one in clients)
    print(
        f"{sum(one.connections for one in clients)} connections, "
        f"{sum(one.requests for one in clients)} requests, {RESTARTS} restarts, {resets} resets, "
        f"refused={refused}, longest wait {max(one.longest for one in clients):.2f} s"
    )
    assert refused == 0
    assert resets <= RESTARTS * CLIENTS
