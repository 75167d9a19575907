"""A folder for images, in the life of one kernel and the next."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.fakes.carrier import SECOND, FakeKernel

from fdbox.handover import arrive, seal
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import BoxKey, Description

if TYPE_CHECKING:
    from pathlib import Path

    from fdbox.ports import Shipment


def memory(content: bytes, size: int | None = None) -> OwnedFd:
    fd = memfd.create("m", len(content) if size is None else size)
    os.pwrite(fd.fileno(), content, 0)
    return fd


def content_of(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


@dataclass
class Home:
    """A folder for images, and what was sealed into it."""

    directory: Path
    kernel: FakeKernel = field(default_factory=FakeKernel)
    held: list[OwnedFd] = field(default_factory=list)
    sealed: list[seal.SealedBox] = field(default_factory=list)
    index: Shipment | None = None
    deliveries: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.carrier = ImageCarrier(self.directory, self.kernel)

    def box(self, name: str, **contents: bytes) -> seal.SealedBox:
        """Seal a box of memories."""
        entries = {}
        for entry, content in contents.items():
            self.held.append(memory(content))
            number = self.held[-1].fileno()
            entries[entry] = (number, Description("memfd", len(content), entry))
        made = seal.seal(BoxKey(1000, name), entries, self.carrier, self.kernel)
        self.sealed.append(made)
        return made

    def publish(self) -> None:
        self.index = seal.write_index(self.sealed, self.carrier, self.kernel, self.index)

    def unseal(self, box: seal.SealedBox) -> None:
        self.sealed.remove(box)
        box.thaw()

    def end(self) -> None:
        """Let the process end."""
        if self.index is not None:
            self.index.release()
        for one in self.sealed:
            one.end()
        close_all(self.held)
        for delivery in self.deliveries:
            close_all([delivery._fd, *delivery._taken.values()])
        self.deliveries = []
        self.sealed, self.held, self.index = [], [], None
        self.carrier.close()

    def boot(self, incarnation: str = SECOND) -> None:
        """Let the process end, and start another kernel."""
        self.end()
        self.kernel.running = incarnation
        self.carrier = ImageCarrier(self.directory, self.kernel)

    def arrive(self) -> tuple[dict[str, bytes], list[str]]:
        """Return the content of everything that came, and why what did not."""
        came, lost = {}, []
        for step in arrive.arrive(self.carrier, self.kernel, arrive.Past()):
            if isinstance(step, arrive.BoxCame):
                for name, one in step.entries.items():
                    came[f"{step.box.name}/{name}"] = content_of(one.fd.fileno())
                    one.fd.close()
                lost += [loss.reason for loss in step.losses]
            elif isinstance(step, arrive.Received):
                self.deliveries.append(step.delivery)
            elif isinstance(step, arrive.Loss):
                lost.append(step.reason)
        return came, lost

    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.rglob("*") if path.is_file())
