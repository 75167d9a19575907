"""A program whose selector, timer and sockets are in a box (examples/asyncio_service.py), killed and started again."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.processes import ROOT, Serving

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = ROOT / "examples/asyncio_service.py"


@contextmanager
def running(*arguments: str) -> Iterator[tuple[str, int]]:
    """Run the program, and kill it; yield what it said at first, and its port."""
    command = [sys.executable, str(PROGRAM), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline().strip()
        port = int(process.stdout.readline().split()[-1])
        try:
            yield first, port
        finally:
            process.kill()


def ask(port: int, send: bytes = b"") -> dict[str, str]:
    """Return what the program says, and send something for its queue."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(send)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile() as answer:
            return dict(word.split("=", 1) for word in answer.read().split(" "))


@pytest.mark.slow
def test_it_goes_on_where_it_was_killed() -> None:
    serving = Serving()
    try:
        with running("--socket", str(serving.socket)) as (first, port):
            assert first == "new"
            ask(port, b"queued")
        with socket.create_connection(("127.0.0.1", port)) as waiting:  # nobody is there
            time.sleep(0.7)
            with running("--socket", str(serving.socket)) as (first, again):
                assert (first, again) == ("recovered", port)
                waiting.shutdown(socket.SHUT_WR)
                with waiting.makefile() as answer:
                    told = dict(word.split("=", 1) for word in answer.read().split(" "))
                assert int(told["ticks"]) >= 3, "none was missed while nobody ran"
    finally:
        serving.stop()
