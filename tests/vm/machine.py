"""QEMU: boot a kernel, let guest.py do what `job.json` says, and read what it left in the shared folder.

What happened is read from files, never from the console. A machine that was lost (a panic, a hang, a deadline) is
another thing than a script that failed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm import debian, initrd, qemu
from tests.vm.kernel import Kernel, ensure_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PROJECT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).with_name("guest.py")
COMMAND_LINE = "console=ttyS0 quiet kho=on liveupdate=on panic=-1"
#: behind the file system, where a script says what it has completed (tests/vm/powercut.py)
MARKS_SIZE = 1 << 20
#: The root is an overlay in memory, and ends with the kernel.
CONFIGURATION = """\
[image]
directory = "/run/disk/fdbox"
"""


class VmLost(Exception):
    """Raised when the machine ended, or had to be ended, before its job was done; has the end of its console."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that ran in the machine."""

    name: str
    status: int
    output: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that ran, in order; `logs` are the daemon's, `kernels` what the kernels call themselves."""

    steps: tuple[Step, ...]
    logs: str
    kernels: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether every step did well."""
        return all(step.status == 0 for step in self.steps)

    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing.override is Python 3.12
        parts = [
            f"--- {step.name}: exit status {step.status}\n{step.output}" for step in self.steps
        ]
        parts.insert(0, f"kernels: {', '.join(self.kernels)}")
        return "\n".join([*parts, *([] if self.good else [f"--- daemon\n{self.logs}"])])


@dataclass(frozen=True, slots=True)
class Machine:
    """What to boot."""

    memory: str = "4G"
    deadline: float = 300.0
    #: by default ours
    kernel: Kernel | None = None
    #: the kernel to jump into; by default the same
    next_kernel: Kernel | None = None
    append: str = ""
    #: of the next kernel; by default the same
    append_next: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    #: what starts the daemon, at the default socket
    serve: Sequence[str] = ("fdbox", "serve")
    #: folders laid over the root; and the init in there, which starts the daemon, and guest.py as a service
    layers: Sequence[Path] = ()
    init: Sequence[str] = ()
    #: of `fdbox update`
    options: Sequence[str] = ()
    #: a script that jumps; by default `fdbox update` does
    jump: Path | None = None
    #: bytes of the file system at /run/disk, in both kernels (9p has neither file handles nor birth times)
    disk_size: int = 2 << 30
    #: a disk of `format_disk` that outlives the machine; by default a new one
    disk: Path | None = None
    #: an empty file, where every write and flush of the disk is recorded
    log: Path | None = None

    def boot(self, script: Path) -> Outcome:
        """Run one script as root; VmLost if the machine did not get that far."""
        return self._complete({"boot": str(script.resolve())}, ["boot"])

    def cross(self, before: Path, after: Path) -> Outcome:
        """Run `before`, replace the kernel, and run `after` in the next one; VmLost likewise."""
        job = {"before": str(before.resolve()), "after": str(after.resolve())}
        return self._complete(job, ["before", "update", "after"])

    def boot_until(self, script: Path, when: Callable[[Path], bool]) -> dict[str, str]:
        """Run one script until `when` says so of the folder with the notes, kill the machine, and return the notes.

        VmLost if it ended before.
        """
        with self._started({"boot": str(script.resolve())}) as run:
            end = time.monotonic() + self.deadline
            while not when(run.share / "notes"):
                if run.process.poll() is not None or time.monotonic() > end:
                    raise run.lost("it was to be killed, and did not get that far")
                time.sleep(0.01)
            run.process.kill()
            run.process.wait()
            return {path.name: path.read_text() for path in (run.share / "notes").iterdir()}

    def _complete(self, scripts: Mapping[str, str], expected: list[str]) -> Outcome:
        with self._started(scripts) as run:
            try:
                run.process.wait(self.deadline)
            except subprocess.TimeoutExpired:
                raise run.lost(f"not done after {self.deadline:.0f} s") from None
            return _collect(run.share, run.console, expected)

    @contextmanager
    def _started(self, scripts: Mapping[str, str]) -> Iterator[_Run]:
        debian.ensure_programs(qemu.TOOLS)
        with tempfile.TemporaryDirectory(prefix="fdbox-vm-") as folder:
            scratch = Path(folder)
            share, console = scratch / "share", scratch / "console"
            (share / "notes").mkdir(parents=True)
            kernel = self.kernel or Kernel(ensure_kernel())
            image = self._lay_out(scratch, share, kernel)
            (share / "job.json").write_text(json.dumps(self._job(scripts)))
            disk = self.disk or scratch / "disk"
            if self.disk is None:
                format_disk(disk, self.disk_size)
            kernels = [kernel, self.next_kernel or kernel]
            hardware = qemu.Hardware(
                self.memory,
                min(one.cpus for one in kernels),
                disk,
                console,
                self._folders(share),
                frozenset(one.transport for one in kernels),
                self.log,
            )
            line = f"{COMMAND_LINE} {self.append}".strip()
            # Two would need more cores than there are, and miss their deadlines.
            with (
                debian.alone("machine"),
                qemu.running(hardware, kernel.image, image, line, scratch) as process,
            ):
                yield _Run(process, share, console)

    def _lay_out(self, scratch: Path, share: Path, kernel: Kernel) -> Path:
        """Put the next kernel where the guest finds it; return the initrd of this one."""
        python, layers = Path(sys.executable).absolute(), len(self.layers)
        image = initrd.build(scratch / "initrd", kernel, python, GUEST, layers)
        next_kernel, next_image = self.next_kernel or kernel, image
        if next_kernel != kernel:
            next_image = initrd.build(scratch / "next", next_kernel, python, GUEST, layers)
        shutil.copy(next_kernel.image, share / "next-kernel")
        shutil.copy(next_image, share / "next-initrd")
        return image

    def _job(self, scripts: Mapping[str, str]) -> dict[str, object]:
        append = self.append if self.append_next is None else self.append_next
        return {
            "scripts": scripts,
            "command_line": f"{COMMAND_LINE} {append}".strip(),
            "configuration": CONFIGURATION,
            "environment": dict(self.environment),
            "serve": [*self.serve],
            "project": str(PROJECT),
            "bin": str(Path(sys.executable).absolute().parent),
            "init": list(self.init),
            "jump": str(self.jump or ""),
            "options": list(self.options),
        }

    def _folders(self, share: Path) -> list[qemu.Folder]:
        layers = [qemu.Folder(path, f"layer{number}") for number, path in enumerate(self.layers)]
        return [qemu.Folder(Path("/"), "hostroot"), qemu.Folder(share, "share", True), *layers]


def format_disk(path: Path, size: int) -> None:
    """Make an empty file system of `size` bytes in a sparse file, and room for marks behind it."""
    with path.open("wb") as file:
        file.truncate(size + MARKS_SIZE)
    command = ["/usr/sbin/mkfs.ext4", "-q", "-F", str(path), f"{size >> 10}k"]
    subprocess.run(command, check=True)


def _collect(share: Path, console: Path, expected: list[str]) -> Outcome:
    """Return what the machine did. A step that failed ends the job, so the ones after it may be missing."""
    steps = []
    for name in ["guest", *expected]:  # "guest" is there only if guest.py itself failed
        result = share / f"{name}.json"
        if not result.exists():
            continue
        found = json.loads(result.read_text())
        steps.append(Step(name, found["status"], found["output"]))
    logs = "\n".join(path.read_text() for path in sorted(share.glob("daemon-*.log")))
    started = share / "kernels"
    kernels = tuple(started.read_text().split()) if started.exists() else ()
    outcome = Outcome(tuple(steps), logs, kernels)
    # A jump leaves no result: `update` is written by the kernel that arrived.
    if len(steps) < len(expected) and outcome.good:
        raise VmLost(
            f"it ended after {[step.name for step in steps]}\n{outcome}\n{logs}\n{_tail(console)}"
        )
    return outcome


@dataclass(frozen=True, slots=True)
class _Run:
    """A machine that runs."""

    process: subprocess.Popen[bytes]
    share: Path
    console: Path

    def lost(self, why: str) -> VmLost:
        """Return an error with all that was said before the machine was lost."""
        files = [*sorted(self.share.glob("*.out")), *sorted(self.share.glob("*.log"))]
        said = [f"--- {file.stem}\n{file.read_text(errors='replace')}" for file in files]
        return VmLost("\n".join([why, *said, _tail(self.console)]))


def _tail(console: Path) -> str:
    text = console.read_text(errors="replace") if console.exists() else ""
    return "the end of its console:\n" + text[-4000:]
