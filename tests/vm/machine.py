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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm import debian, initrd
from tests.vm.kernel import ensure_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROJECT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).with_name("guest.py")
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "/usr/sbin/mkfs.ext4": "e2fsprogs"}
_DISK_BYTES = 256 << 20
COMMAND_LINE = "console=ttyS0 quiet kho=on liveupdate=on panic=-1"


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
    """All that ran, in order; `logs` are the daemon's."""

    steps: tuple[Step, ...]
    logs: str

    @property
    def good(self) -> bool:
        """Whether every step did well."""
        return all(step.status == 0 for step in self.steps)

    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing.override is Python 3.12
        parts = [
            f"--- {step.name}: exit status {step.status}\n{step.output}" for step in self.steps
        ]
        return "\n".join([*parts, *([] if self.good else [f"--- daemon\n{self.logs}"])])


@dataclass(frozen=True, slots=True)
class Machine:
    """What to boot."""

    memory: str = "4G"
    deadline: float = 300.0
    kernel: Path | None = None
    #: the kernel to jump into; by default the same
    next_kernel: Path | None = None
    append: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    #: what starts the daemon, at the default socket
    serve: Sequence[str] = ("fdbox", "serve")
    #: folders laid over the root; and the init in there, which starts the daemon, and guest.py as a service
    layers: Sequence[Path] = ()
    init: Sequence[str] = ()
    #: a script that jumps; by default `fdbox update` does
    jump: Path | None = None

    def boot(self, script: Path) -> Outcome:
        """Run one script as root; VmLost if the machine did not get that far."""
        return self._run({"boot": str(script.resolve())}, ["boot"])

    def cross(self, before: Path, after: Path) -> Outcome:
        """Run `before`, replace the kernel, and run `after` in the next one; VmLost likewise."""
        job = {"before": str(before.resolve()), "after": str(after.resolve())}
        return self._run(job, ["before", "update", "after"])

    def _run(self, scripts: Mapping[str, str], expected: list[str]) -> Outcome:
        debian.ensure_programs(TOOLS)
        with tempfile.TemporaryDirectory(prefix="fdbox-vm-") as folder:
            share = Path(folder) / "share"
            share.mkdir()
            kernel = self.kernel or ensure_kernel()
            python = Path(sys.executable).absolute()
            image = initrd.build(Path(folder), python, GUEST, len(self.layers))
            shutil.copy(self.next_kernel or kernel, share / "next-kernel")
            shutil.copy(image, share / "next-initrd")
            command_line = f"{COMMAND_LINE} {self.append}".strip()
            job = {
                "scripts": scripts,
                "command_line": command_line,
                "environment": dict(self.environment),
                "serve": [*self.serve],
                "project": str(PROJECT),
                "bin": str(python.parent),
                "init": list(self.init),
                "jump": str(self.jump or ""),
            }
            (share / "job.json").write_text(json.dumps(job))
            console = Path(folder) / "console"
            disk = _format_disk(Path(folder) / "disk")
            with debian.alone(
                "machine"
            ):  # two would need more cores than there are, and miss their deadlines
                self._qemu(kernel, image, command_line, share, disk, console)
            return _collect(share, console, expected)

    def _qemu(
        self, kernel: Path, image: Path, line: str, share: Path, disk: Path, console: Path
    ) -> None:
        shared = "security_model=none,multidevs=remap"
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max"]
        command += [
            "-smp",
            "2",
            "-m",
            self.memory,
            "-no-reboot",
            "-nic",
            "none",
            "-display",
            "none",
        ]
        command += ["-virtfs", f"local,path=/,mount_tag=hostroot,readonly=on,{shared}"]
        command += ["-virtfs", f"local,path={share},mount_tag=share,{shared}"]
        command += ["-drive", f"file={disk},format=raw,if=virtio"]
        for number, layer in enumerate(self.layers):
            tag = f"mount_tag=layer{number}"
            command += ["-virtfs", f"local,path={layer},{tag},readonly=on,{shared}"]
        command += ["-kernel", str(kernel), "-initrd", str(image), "-append", line]
        command += ["-serial", f"file:{console}", "-monitor", "none"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as qemu:
            try:
                qemu.wait(self.deadline)
            except subprocess.TimeoutExpired:
                qemu.kill()
                late = f"not done after {self.deadline:.0f} s"
                raise VmLost(f"{late}\n{_said(share)}\n{_tail(console)}") from None


def _format_disk(path: Path) -> Path:
    """Return an empty file system, at /run/disk in both kernels: 9p has neither file handles nor birth times."""
    with path.open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", str(path)], check=True)
    return path


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
    outcome = Outcome(tuple(steps), logs)
    # A jump leaves no result: `update` is written by the kernel that arrived.
    if len(steps) < len(expected) and outcome.good:
        raise VmLost(
            f"it ended after {[step.name for step in steps]}\n{outcome}\n{logs}\n{_tail(console)}"
        )
    return outcome


def _said(share: Path) -> str:
    """Return all that was said before the machine was lost."""
    files = [*sorted(share.glob("*.out")), *sorted(share.glob("*.log"))]
    return "\n".join(f"--- {file.stem}\n{file.read_text(errors='replace')}" for file in files)


def _tail(console: Path) -> str:
    text = console.read_text(errors="replace") if console.exists() else ""
    return "the end of its console:\n" + text[-4000:]
