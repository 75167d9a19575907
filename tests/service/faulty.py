"""`fdbox serve` with faults: a keeper and a service as they are, but for the carrier, the kernel, and what `reached` does.

    python -m tests.service.faulty FOLDER

FOLDER has the socket (`io.fdbox`), the steps that were reached (`trace`), and, while one is armed, the fault (`fault`): the
number of steps until then, and `kill` (the service, with SIGKILL) or `cut` (its connection to the keeper). A third word is
the number for the next fault, then the one after that, and so on. One that is armed from the beginning is what the file
named by FAULT_FILE says. With FAULTY_REAL the carrier and the kernel are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.keeper import process, protocol
from fdbox.linux import sdnotify, spawn
from fdbox.nextkernel.load import RunningKernel
from fdbox.service import daemon
from fdbox.service.config import Config
from tests.fakes.carrier import SECOND, FakeKernel
from tests.fakes.sessions import SocketCarrier

if TYPE_CHECKING:
    from fdbox.linux.fd import OwnedFd
    from fdbox.ports import Carrier, Kernel
    from fdbox.service.keep import Keep


class FolderKernel(FakeKernel):
    """A kernel whose loaded successor outlives the process that has loaded it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(SECOND)
        self._file = folder / "loaded"

    def load(self, kernel: int, initrd: int | None, command_line: str) -> None:  # type: ignore[explicit-override]  # typing.override is Python 3.12
        self._file.touch()

    def unload(self) -> None:  # type: ignore[explicit-override]  # as above
        self._file.unlink(missing_ok=True)


class Faults:
    """Counts the steps, and does what is armed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.keep: Keep | None = None

    def reached(self, step: str) -> None:
        with (self._folder / "trace").open("a") as trace:
            trace.write(f"{step}\n")
        fault = self._folder / "fault"
        with contextlib.suppress(FileNotFoundError):
            left, what, *following = fault.read_text().split()
            if int(left):
                fault.write_text(" ".join([str(int(left) - 1), what, *following]))
                return
            if following:
                fault.write_text(f"{following[0]} {what} {int(following[0]) + 1}")
            else:
                fault.unlink()
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.keep is not None:
                self.keep._link._sock.shutdown(socket.SHUT_RDWR)


def command() -> list[str]:
    return [sys.executable, "-m", "tests.service.faulty", *sys.argv[1:]]


def main(folder: Path) -> int:
    if not protocol.is_kept(os.environ):
        folder.mkdir(exist_ok=True)
        if (first := Path(os.environ.get("FAULT_FILE", "/nonexistent"))).exists():
            (folder / "fault").write_text(first.read_text())
        return process.run(command())
    faults = Faults(folder)
    given = sdnotify.take_inherited(os.environ)
    if "FAULTY_REAL" in os.environ:
        kernel: Kernel = RunningKernel()
        carrier: Carrier[OwnedFd] = KernelCarrier()
    else:
        kernel = FolderKernel(folder)
        carrier = SocketCarrier(folder, json.loads(os.environ.get("INCOMING", "{}")))
    make = functools.partial(daemon.Service, Config(), carrier, kernel)

    def made(keep: Keep) -> daemon.Service:
        faults.keep = keep
        return make(keep, faults.reached)

    heirlooms = asyncio.run(
        daemon.serve(made, folder / "io.fdbox", given, kernel.incarnation(), faults.reached)
    )
    if heirlooms is not None:
        environment = {**os.environ, **sdnotify.inheritance([name for name, _ in heirlooms])}
        spawn.become(command(), environment, [fd.fileno() for _, fd in heirlooms])
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
