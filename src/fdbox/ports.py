"""What is injected, so that tests can put a verified fake in its place: the kernel, the carrier, the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from fdbox.errors import KernelError

if TYPE_CHECKING:
    from fdbox.linux.fd import OwnedFd
    from fdbox.model import Carriage

#: Monotonic seconds, as `time.monotonic`.
Clock = Callable[[], float]

#: Called with the name of each step after which this process may die, or may lose its keeper. Tests inject one that
#: lets that happen.
Reached = Callable[[str], None]


def go_on(step: str) -> None:
    """Let nothing happen."""


DescriptorT_co = TypeVar("DescriptorT_co", covariant=True)


class ParcelRefused(KernelError):
    """Raised by a carrier that does not take a descriptor; `token` is the one it was to travel under."""

    def __init__(
        self, message: str, token: int, *, errno: int = 0, remedy: str | None = None
    ) -> None:
        """Take the kernel's reason and the token."""
        super().__init__(message, errno=errno, remedy=remedy)
        self.token = token


class Kernel(Protocol):
    """The running kernel, as far as a live update needs it."""

    def incarnation(self) -> str:
        """Return the boot id, the name of this life of the kernel."""

    def realtime(self) -> int:
        """Return nanoseconds of CLOCK_REALTIME, the only clock that goes on across incarnations."""

    def free_memory(self) -> int:
        """Return the bytes that can be taken without driving anything into the OOM killer."""

    def load(self, kernel: int, initrd: int | None, command_line: str) -> None:
        """Load the next kernel, instead of what may be loaded; only `jump` is then left to do."""

    def unload(self) -> None:
        """Take back `load`."""

    def sync(self) -> None:
        """Write back what the file systems hold: the last thing that may take long."""

    def jump(self) -> None:
        """Start the next kernel; returns only by raising."""


class Shipment(Protocol):
    """What one box sends to the next incarnation; it exists as long as it is not discarded and its holder lives."""

    @property
    def name(self) -> str:
        """The name under which the next incarnation finds it."""

    def add(self, parcels: Sequence[tuple[int, int]]) -> None:
        """Preserve (descriptor, token) pairs, all or raise naming the token in `ParcelRefused`."""

    def discard(self) -> None:
        """Let go of everything; the originals go on untouched."""


class Delivery(Protocol[DescriptorT_co]):
    """What came from the last incarnation under one name."""

    def fileno(self) -> int:
        """Return the descriptor that it hangs on, borrowed: while one is open somewhere, nothing of it is lost."""

    def take(self, token: int) -> DescriptorT_co:
        """Return the descriptor that was preserved under `token`; the second time, one of the same open file."""

    def finish(self) -> None:
        """Tell the carrier that all has been taken; what was not is freed."""


class Carrier(Protocol[DescriptorT_co]):
    """What takes sealed boxes across."""

    name: str

    def carriage(self) -> Carriage:
        """Return whether this machine has it now, and why not."""

    def probe(self, fd: int, kind: str) -> Carriage:
        """Return whether it takes a descriptor as it is, which is tried out; the answer may be an earlier one of the kind."""

    def ship(self, name: str) -> Shipment:
        """Begin a shipment."""

    def receive(self, name: str) -> Delivery[DescriptorT_co] | None:
        """Return what came under `name`, or None when nothing did."""

    def resume(self, name: str, fd: OwnedFd) -> Delivery[DescriptorT_co]:
        """Return a delivery that was received under `name` by a process that is no more; own its descriptor."""
