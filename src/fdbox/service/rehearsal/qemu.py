"""The rehearsal as the command line sees it: what is booted, what is to be heard, and where the console is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.errors import RehearsalFailed, UsageError
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.nextkernel.load import RunningKernel
from fdbox.service.rehearsal import guest, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROGRAM = "qemu-system-x86_64"
_KVM_DEADLINE, _DEADLINE = 30.0, 300.0
_MEMORY = "2G"
_CONSOLE = "console=ttyS0"
_RUNNING = ("running kernel booted", "sealed", "next kernel loaded")


@dataclass(frozen=True, slots=True)
class Copy:
    """A box, copied: the names of its entries, and the file that `Export` has written."""

    entries: tuple[str, ...]
    file: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What is rehearsed: the next kernel as it would be started, and, if it is known, the running one's image and command line."""

    kernel: Path
    initrd: Path | None
    command_line: str
    running: tuple[Path, str] | None = None
    copy: Copy | None = None
    with_kvm: bool = True

    @property
    def stages(self) -> tuple[str, ...]:
        """What has to be heard, in this order."""
        copy = () if self.copy is None else ("copy arrived",)
        running = () if self.running is None else _RUNNING
        return (*running, "next kernel booted", "box arrived", *copy, "init started")


@dataclass(frozen=True, slots=True)
class _Boot:
    """What QEMU starts, and the stages that have to be heard of."""

    kernel: Path
    initrd: bytes
    line: str
    stages: tuple[str, ...]
    with_kvm: bool


def rehearse(plan: Plan, say: Callable[[str], None]) -> None:
    """Boot the next kernel with its initrd and small boxes in it; from the running kernel, where that hands over.

    Raises:
        UsageError: there is no QEMU.
        RehearsalFailed: naming the stage that was not reached, and where the console is.
    """
    if shutil.which(PROGRAM) is None:
        raise UsageError(
            f"there is no {PROGRAM}", remedy="install qemu-system-x86, or leave --rehearse out"
        )
    with tempfile.TemporaryDirectory(prefix="fdbox-rehearsal-") as made:
        folder = Path(made)
        line = f"{plan.command_line} {_CONSOLE} rdinit=/{pack.INIT} panic=-1"
        real = b"" if plan.initrd is None else plan.initrd.read_bytes()
        real += bytes(-len(real) % 4)
        # The copy is taken in once: where the jump begins, if there is one.
        taken, expected = _copy(plan.copy)
        if plan.running is None:
            initrd = real + _packed(_sample(folder / "box") | taken | expected)
            _boot(folder, _Boot(plan.kernel, initrd, line, plan.stages, plan.with_kvm), say)
            return
        image, running_line = plan.running
        jump = {
            guest.JUMP: json.dumps(line).encode(),
            guest.KERNEL: plan.kernel.read_bytes(),
            guest.INITRD: real + _packed(expected),
        }
        first_line = f"{running_line} {_CONSOLE} rdinit=/{pack.INIT} panic=-1"
        boot = _Boot(image, _packed(jump | taken), first_line, plan.stages, plan.with_kvm)
        _boot(folder, boot, say)


def _packed(files: Mapping[Path, bytes]) -> bytes:
    return pack.archive({str(path).lstrip("/"): content for path, content in files.items()})


def _copy(copy: Copy | None) -> tuple[dict[Path, bytes], dict[Path, bytes]]:
    """Return the file of the copied box, and that of what has to arrive."""
    if copy is None:
        return {}, {}
    return {guest.COPY: copy.file}, {guest.EXPECTED: json.dumps(sorted(copy.entries)).encode()}


def _sample(folder: Path) -> dict[Path, bytes]:
    """Return the files of the sample, as images have it: the next kernel is another incarnation, and loads it."""
    kernel = RunningKernel()
    carrier = ImageCarrier(folder, kernel)
    sealed = guest.seal_all({guest.SAMPLE: guest.sample()}, carrier, kernel)
    try:
        return {
            guest.IMAGES / path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
    finally:
        sealed.end()
        carrier.close()


def _boot(folder: Path, boot: _Boot, say: Callable[[str], None]) -> None:
    """Boot, by KVM if a guest comes up in it; /dev/kvm alone does not say so."""
    (folder / "initrd").write_bytes(boot.initrd)
    if boot.with_kvm and os.access("/dev/kvm", os.R_OK | os.W_OK):
        say(f"rehearsing in {PROGRAM}, with KVM")
        ended = _run(folder, boot, "kvm", _KVM_DEADLINE)
        if boot.stages[0] in _heard(folder):
            _judge(folder, boot.stages, ended, say)
            return
    say(f"rehearsing in {PROGRAM}, which may take some minutes")
    ended = _run(folder, boot, "tcg,thread=multi", _DEADLINE)
    _judge(folder, boot.stages, ended, say)


def _run(folder: Path, boot: _Boot, accelerator: str, deadline: float) -> str:
    """Return what QEMU said at its end."""
    for name in ("console", "report"):
        (folder / name).unlink(missing_ok=True)
    command = [PROGRAM, "-accel", accelerator, "-cpu", "max", "-m", _MEMORY]
    command += ["-no-reboot", "-nic", "none", "-display", "none", "-monitor", "none"]
    command += ["-serial", f"file:{folder / 'console'}", "-serial", f"file:{folder / 'report'}"]
    command += ["-kernel", str(boot.kernel), "-initrd", str(folder / "initrd")]
    command += ["-append", boot.line]
    try:
        done = subprocess.run(command, capture_output=True, timeout=deadline, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {deadline:.0f} s"
    return done.stderr.decode(errors="replace").strip()


def _heard(folder: Path) -> dict[str, str]:
    """Return the stages that were reached, and what was said of each."""
    path = folder / "report"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    said = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return {one["stage"]: one["detail"] for one in said}


def _judge(folder: Path, stages: tuple[str, ...], ended: str, say: Callable[[str], None]) -> None:
    heard = _heard(folder)
    for stage, detail in heard.items():
        say(f"rehearsal: {stage} {detail}".rstrip())
    missing = next((stage for stage in stages if stage not in heard), None)
    if missing is None:
        return
    console = folder / "console"
    with tempfile.NamedTemporaryFile("wb", prefix="fdbox-console-", delete=False) as kept:
        kept.write(console.read_bytes() if console.exists() else b"")
    why = heard.get("failed") or ended or "the machine ended"
    raise RehearsalFailed(
        f"the rehearsal did not reach {missing!r}: {why}",
        remedy=f"see its console in {kept.name}; nothing of this machine was touched",
    )
