"""What tests need to know of other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import fdbox

if TYPE_CHECKING:
    from collections.abc import Callable


def service_of(keeper: int) -> int:
    """Return the pid of the service that a keeper has started last, or 0 while there is none."""
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    return int(children[-1]) if children else 0


class Serving:
    """A `fdbox serve` of the test's own, at a socket of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fdbox")
        self.socket = Path(self._folder.name) / "io.fdbox"
        self._log = Path(self._folder.name) / "log"
        command = [sys.executable, "-m", "fdbox", "serve", "--socket", str(self.socket)]
        with self._log.open("w") as out:
            self._keeper = subprocess.Popen(command, stdout=out, stderr=out)
        self._until(self.socket.exists)

    def kill_service(self) -> None:
        """Kill the service, as soon as there is one, and return when there is another."""
        self._until(lambda: service_of(self._keeper.pid) != 0)
        before = service_of(self._keeper.pid)
        os.kill(before, signal.SIGKILL)
        self._until(lambda: service_of(self._keeper.pid) not in (0, before))

    def reexec(self) -> None:
        """Have the code on disk take over from the service and the keeper, and return when the service answers again."""
        with fdbox.connect(self.socket) as client:
            assert client.reexec() == fdbox.__version__
            client.status()

    def held(self) -> list[str]:
        """Return what the keeper's descriptors point to."""
        return [str(fd.readlink()) for fd in Path(f"/proc/{self._keeper.pid}/fd").iterdir()]

    def kill_keeper(self) -> int:
        """Kill the keeper, and return the pid of the service, which goes on."""
        service = service_of(self._keeper.pid)
        self._keeper.kill()
        self._keeper.wait()
        return service

    def clean_up(self) -> None:
        """Remove the files of one that has ended."""
        self._folder.cleanup()

    def stop(self) -> None:
        """End it, as `kill` does."""
        self._keeper.terminate()
        status = self._keeper.wait(20)
        log = self._log.read_text()
        self.clean_up()
        assert status == 0, log
        assert "Traceback" not in log, log

    def _until(self, good: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not good():
            assert self._keeper.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.005)
