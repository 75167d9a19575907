"""`fdbox run` with a small program, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

PRELUDE = """
import os, signal, socket, sys, time

def say(*words):
    print(*words, flush=True)

def notify(text, *fds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
        socket.send_fds(sock, [text.encode()], fds)

def barrier():
    "Return when everything said before was done."
    reading, writing = os.pipe()
    notify("BARRIER=1", writing)
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)

def memory(content, name="m"):
    fd = os.memfd_create(name)
    os.write(fd, content.encode())
    return fd

def read(fd):
    return os.pread(fd, 4096, 0).decode()

assert os.environ.get("LISTEN_PID") in (None, str(os.getpid()))
held = list(enumerate(os.environ.get("LISTEN_FDNAMES", "").split(":"), 3)) if "LISTEN_FDS" in os.environ else []
assert len(held) == int(os.environ.get("LISTEN_FDS", 0))
names = [name for _, name in held]
"""


def program(code: str) -> list[str]:
    """Return the command of a program that knows what PRELUDE defines."""
    return [sys.executable, "-I", "-S", "-c", PRELUDE + code]


class Running:
    """A `fdbox run`: what its program says line by line, what it says itself, and how it ends."""

    def __init__(
        self,
        command: list[str],
        *options: str,
        wrapper: tuple[str, ...] = (),
        **popen: Any,  # noqa: ANN401 - of Popen
    ) -> None:
        own = [*wrapper, sys.executable, "-m", "fdbox", "run", *options, "--", *command]
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self.process = subprocess.Popen(
            own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            **popen,
        )

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def line(self) -> str:
        """Return the next line of the program; at the end, fail."""
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        assert line.endswith("\n"), self.log
        return line[:-1]

    def tell(self, line: str) -> None:
        """Write a line to the program's standard input."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def end(self) -> int:
        """Return its exit status; what it has written must have been read."""
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""
        assert "Traceback" not in self.log
        return self.process.wait(20)

    def terminate(self) -> int:
        self.process.terminate()
        return self.end()

    def child(self) -> int:
        """Return the pid of the program."""
        return children(self.process.pid)[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:  # after a failure
            left = children(self.process.pid)
            self.process.kill()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with self.process:
            self._log.close()


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(good: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not good():
        assert time.monotonic() < end
        time.sleep(0.005)
