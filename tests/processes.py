"""What tests need to know of other processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import fdbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


def service_of(keeper: int) -> int:
    """Return the pid of the service that a keeper has started last, or 0 while there is none."""
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    return int(children[-1]) if children else 0


def links_of(pid: int) -> list[str]:
    """Return what a process's descriptors point to."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed while we look
            found.append(str(fd.readlink()))
    return found


def serve(folder: Path) -> list[str]:
    """Return the command of a daemon whose socket is `io.fdbox` in a folder."""
    return [sys.executable, "-m", "fdbox", "serve", "--socket", str(folder / "io.fdbox")]


class Serving:
    """A daemon of the test's own, in a folder of its own."""

    def __init__(
        self,
        command: Callable[[Path], list[str]] = serve,
        **options: Any,  # noqa: ANN401 - of Popen
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="fdbox")
        self.folder = Path(self._temporary.name)
        self.socket = self.folder / "io.fdbox"
        self._log = self.folder / "log"
        with self._log.open("w") as out:
            self._keeper = subprocess.Popen(command(self.folder), stdout=out, stderr=out, **options)
        self.until(self.answers)

    def answers(self) -> bool:
        """Return whether the service serves."""
        try:
            with fdbox.connect(self.socket) as client:
                client.status()
        except fdbox.ConnectionLost:
            return False
        return True

    def kill_service(self) -> None:
        """Kill the service, as soon as there is one, and return when there is another."""
        self.until(lambda: service_of(self._keeper.pid) != 0)
        before = service_of(self._keeper.pid)
        os.kill(before, signal.SIGKILL)
        self.until(lambda: service_of(self._keeper.pid) not in (0, before))

    def reexec(self) -> None:
        """Have the code on disk take over from the service and the keeper, and return when the service answers again."""
        with fdbox.connect(self.socket) as client:
            assert client.reexec() == fdbox.__version__
            client.status()

    @property
    def keeper(self) -> int:
        """The keeper's pid."""
        return self._keeper.pid

    def log(self) -> str:
        """Return what they have said."""
        return self._log.read_text()

    def held(self) -> list[str]:
        """Return what the keeper's descriptors point to."""
        return links_of(self._keeper.pid)

    def held_by_service(self) -> list[str]:
        """Return what the service's descriptors point to."""
        return links_of(service_of(self._keeper.pid))

    def kill_keeper(self) -> int:
        """Kill the keeper, and return the pid of the service, which goes on."""
        service = service_of(self._keeper.pid)
        self._keeper.kill()
        self._keeper.wait()
        return service

    def clean_up(self) -> None:
        """Remove the files of one that has ended."""
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.stop()
        else:  # nothing may stay in the way of other tests
            service = service_of(self._keeper.pid)
            self._keeper.kill()
            self._keeper.wait()
            if service:
                os.kill(service, signal.SIGKILL)
            self.clean_up()

    def stop(self) -> None:
        """End it, as `kill` does."""
        self._keeper.terminate()
        status = self._keeper.wait(20)
        log = self._log.read_text()
        self.clean_up()
        assert status == 0, log
        assert "Traceback" not in log, log

    def until(self, good: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not good():
            assert self._keeper.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.005)


ROOT = Path(__file__).parents[1]


class Faulty(Serving):
    """A daemon with faults: tests/service/faulty.py says which."""

    def __init__(self, **options: object) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        environment.update(options.pop("env", {}))  # type: ignore[call-overload]
        super().__init__(
            lambda folder: [sys.executable, "-m", "tests.service.faulty", str(folder)],
            env=environment,
            cwd=ROOT,
            **options,
        )

    def trace(self) -> list[str]:
        return (self.folder / "trace").read_text().splitlines()

    def arm(self, steps: int, what: str) -> None:
        (self.folder / "fault").write_text(f"{steps} {what}")

    def disarm(self) -> bool:
        """Return whether the fault never happened."""
        fault = self.folder / "fault"
        was_there = fault.exists()
        fault.unlink(missing_ok=True)
        return was_there
