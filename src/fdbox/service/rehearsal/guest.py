"""What runs in QEMU as PID 1, from an initrd: in the running kernel it seals boxes and jumps, in the next one it looks what came.

There are up to two boxes: a sample, of which every byte is known, and a copy of one of the user's, of which every entry has to be
there.

It says each stage that it reached on the second serial port, a line of JSON each, and ends the machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.handover import arrive, seal
from fdbox.handover.carriers import single
from fdbox.handover.carriers.choice import KernelAndImage
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.kinds import registry
from fdbox.kinds.look import look
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, close_all, open_path
from fdbox.model import BoxKey
from fdbox.nextkernel.load import RunningKernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fdbox.ports import Carrier, Shipment

    Boxes = dict[BoxKey, dict[str, OwnedFd]]

#: in the initrd
FOLDER = Path("/fdbox-rehearsal.d")
IMAGES = FOLDER / "images"
JUMP = FOLDER / "jump.json"
KERNEL, INITRD = FOLDER / "kernel", FOLDER / "initrd"
#: the copy, as `fdbox export` writes it, where it has to be taken in; and what has to be there in the end
COPY, EXPECTED = FOLDER / "copy", FOLDER / "expected.json"
REPORT = "/dev/ttyS1"
SAMPLE, COPIED = BoxKey(0, "sample"), BoxKey(0, "copy")
_MESSAGE = b"it was here before"
_COUNT = 41
#: how long the initrd's own /init may run: it waits for a disk that is not there
_WATCHED = 5.0


def sample() -> dict[str, OwnedFd]:
    """Return a small box: memory, a counter, and a pipe with something in it."""
    memory = memfd.create("rehearsal", 1 << 20)
    os.pwrite(memory.fileno(), _MESSAGE, 1000)
    reading, writing = (OwnedFd(end) for end in os.pipe())
    os.write(writing.fileno(), _MESSAGE)
    return {
        "memory": memory,
        "counter": OwnedFd(os.eventfd(_COUNT)),
        "reading": reading,
        "writing": writing,
    }


def wrong(came: Mapping[str, OwnedFd]) -> list[str]:
    """Return what of the sample is not as it was."""
    bad = [name for name in ("memory", "counter", "reading", "writing") if name not in came]
    if not bad:
        if os.pread(came["memory"].fileno(), len(_MESSAGE), 1000) != _MESSAGE:
            bad.append("memory")
        if os.eventfd_read(came["counter"].fileno()) != _COUNT:
            bad.append("counter")
        if os.read(came["reading"].fileno(), 100) != _MESSAGE:
            bad.append("reading")
    return bad


@dataclass
class Sealed:
    """Boxes, sealed: what has to live until the jump."""

    boxes: list[seal.SealedBox]
    index: Shipment | None
    held: list[OwnedFd]

    def end(self) -> None:
        """Let go of what this process holds; files stay."""
        if self.index is not None:
            self.index.release()
        for box in self.boxes:
            box.end()
        close_all(self.held)


def seal_all(boxes: Boxes, carrier: Carrier[OwnedFd], kernel: RunningKernel) -> Sealed:
    """Return boxes, sealed; what is in them belongs to the result."""
    sealed = []
    for key, box in boxes.items():
        entries = {}
        for name, fd in box.items():
            seen = look(fd.fileno())
            entries[name] = (fd.fileno(), registry.recognise(seen).describe(seen))
        sealed.append(seal.seal(key, entries, carrier, kernel))
    held = [fd for box in boxes.values() for fd in box.values()]
    return Sealed(sealed, seal.write_index(sealed, carrier, kernel), held)


def main() -> None:
    """Do what is to be done in this kernel, and end the machine."""
    try:
        _mount()
        if JUMP.exists():
            _leave()
        else:
            _arrive()
    except AssertionError as error:
        _say("failed", str(error))
    except BaseException:  # noqa: BLE001 - nobody is above PID 1
        _say("failed", traceback.format_exc())
    _power_off()


def _mount() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, where in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        Path(where).mkdir(exist_ok=True)
        libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None)


def _say(stage: str, detail: str = "") -> None:
    with open(REPORT, "w", encoding="utf-8") as port:  # noqa: PTH123 - a device
        port.write(json.dumps({"stage": stage, "detail": detail}) + "\n")


def _leave() -> None:
    _say("running kernel booted", os.uname().release)
    kernel = RunningKernel()
    carrier = KernelAndImage(KernelCarrier(), ImageCarrier(IMAGES, kernel))
    sealed = seal_all({SAMPLE: sample(), **_copy(kernel)}, carrier, kernel)
    _say("sealed")
    line = json.loads(JUMP.read_text(encoding="utf-8"))
    with KERNEL.open("rb") as image, INITRD.open("rb") as initrd:
        kernel.load(image.fileno(), initrd.fileno(), line)
    _say("next kernel loaded")
    kernel.jump()
    raise AssertionError(f"{[box.box for box in sealed.boxes]} did not leave")


def _arrive() -> None:
    _say("next kernel booted", os.uname().release)
    kernel = RunningKernel()
    carrier = KernelAndImage(KernelCarrier(), ImageCarrier(IMAGES, kernel))
    came = _come(carrier, kernel) | _copy(kernel)
    if bad := wrong(came.get(SAMPLE, {})):
        raise AssertionError(f"of the small box these are not as they were: {bad}")
    _say("box arrived", ", ".join(sorted(came[SAMPLE])))
    if EXPECTED.exists():
        wanted = json.loads(EXPECTED.read_text(encoding="utf-8"))
        found = sorted(came.get(COPIED, {}))
        if found != wanted:
            raise AssertionError(f"of the copied box {wanted} there is only {found}")
        _say("copy arrived", ", ".join(found))
    if os.fork() == 0:
        time.sleep(_WATCHED)  # noqa: TID251 - nothing else runs here
        _say("init started")
        _power_off()
    os.execv("/init", ["/init"])  # noqa: S606 - as the kernel does


def _come(carrier: Carrier[OwnedFd], kernel: RunningKernel) -> Boxes:
    """Return what came; AssertionError for what is lost."""
    came: Boxes = {}
    lost = []
    for step in arrive.arrive(carrier, kernel, arrive.Past()):
        if isinstance(step, arrive.BoxCame):
            came[step.box] = _whole(step.box.name, step.entries, step.losses)
        elif isinstance(step, arrive.Loss):
            lost.append(step.reason)
    if lost:
        raise AssertionError(f"not all came: {lost}")
    return came


def _copy(kernel: RunningKernel) -> Boxes:
    """Return the copied box, if this is where it is taken in."""
    if not COPY.exists():
        return {}
    with open_path(COPY, os.O_RDONLY) as file:
        box, entries, losses = single.read(file.fileno(), 0, kernel)
    return {COPIED: _whole(box.name, entries, losses)}


def _whole(
    box: str, entries: Mapping[str, arrive.Arrived], losses: Sequence[arrive.Loss]
) -> dict[str, OwnedFd]:
    if losses:
        said = "; ".join(f"{loss.entry}: {loss.reason}" for loss in losses)
        raise AssertionError(f"of box {box!r} is lost: {said}")
    return {name: one.fd for name, one in entries.items()}


def _power_off() -> None:
    os.sync()
    ctypes.CDLL(None).reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF
