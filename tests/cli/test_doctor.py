"""What `fdbox doctor` does with whom it finds at the daemon's socket."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.cli import main
from fdbox.linux import peer
from fdbox.service.doctor import checks
from fdbox.service.doctor.said import Level, Said

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

Capture = pytest.CaptureFixture[str]


def ask(path: Path, capsys: Capture) -> dict[str, Any]:
    """Return what the doctor finds, by check."""
    assert main.run(["doctor", "--json", "--socket", str(path)]) in (0, 1)
    return {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}


@contextmanager
def listening(path: Path, backlog: int = 5) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(backlog)
        yield sock


def check_silent(path: Path, capsys: Capture) -> None:
    found = ask(path, capsys)
    assert found["daemon"]["level"] == "warning"
    assert found["daemon"]["says"] == f"who listens at {path} does not answer"
    assert found["descriptors"]["says"].startswith("RLIMIT_NOFILE of this process")


def test_who_takes_a_connection_and_never_answers(
    socket_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "_PATIENCE", 0.1)
    with listening(socket_path):
        check_silent(socket_path, capsys)


def test_who_does_not_even_take_it(socket_path: Path, capsys: Capture) -> None:
    with listening(socket_path, backlog=0), socket.socket(socket.AF_UNIX) as first:
        first.connect(str(socket_path))
        check_silent(socket_path, capsys)


def test_who_hangs_up(socket_path: Path, capsys: Capture) -> None:
    def hang_up(sock: socket.socket) -> None:
        sock.accept()[0].close()

    with listening(socket_path) as sock:
        thread = threading.Thread(target=hang_up, args=[sock])
        thread.start()
        check_silent(socket_path, capsys)
        thread.join()


def test_who_is_no_fdbox(socket_path: Path, capsys: Capture) -> None:
    def talk(sock: socket.socket) -> None:
        for _ in range(2):
            with sock.accept()[0] as one:
                one.recv(4096)
                one.sendall(b"220 mail.example ESMTP\0")

    with listening(socket_path) as sock:
        thread = threading.Thread(target=talk, args=[sock])
        thread.start()
        found = ask(socket_path, capsys)
        thread.join()
    assert found["daemon"]["says"].startswith(f"who answers at {socket_path} is no fdbox: ")


@pytest.mark.parametrize("level", [Level.UNKNOWN, Level.WARNING])
def test_what_is_not_seen_makes_the_ways_unsure(
    level: Level, socket_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [checks.Finding("images", Said(level, "it may be so", "look as root"))]
    monkeypatch.setattr(checks, "judge", lambda _: found)
    assert main.run(["doctor", "--socket", str(socket_path)]) == 0
    said = capsys.readouterr().out.splitlines()[-3:]
    start = "as far as this user may see, boxes" if level is Level.UNKNOWN else "boxes"
    assert [line.startswith(f"{start} would cross ") for line in said] == [True] * 3


def test_nobody_there(socket_path: Path, capsys: Capture) -> None:
    assert ask(socket_path, capsys)["daemon"]["says"] == "no fdbox answers here"
