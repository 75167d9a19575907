"""What is injected, so that tests can put a verified fake in its place: the kernel, the carrier, the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from fdbox.errors import KernelError

if TYPE_CHECKING:
    from fdbox.linux.fd import OwnedFd
    from fdbox.model import Carriage
    from fdbox.nextkernel.verdict import Verdict

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

    def judge(self, kernel: int, command_line: str) -> Verdict:
        """Return what the next kernel would make of what this one leaves; KernelImageInvalid."""

    def load(self, kernel: int, initrd: int | None, command_line: str) -> None:
        """Load the next kernel, instead of what may be loaded; only `jump` is then left to do."""

    def unload(self) -> None:
        """Take back `load`."""

    def sync(self) -> None:
        """Write back what the file systems hold: the last thing that may take long."""

    def jump(self) -> None:
        """Start the next kernel; returns only by raising, or after `give_way`, when somebody else does it."""

    def reboot(self) -> None:
        """Start the machine anew, without a kernel that was loaded; returns as `jump`."""

    def give_way(self) -> None:
        """Have a `jump` or `reboot` that somebody else carries out go on without this process, which is to end."""


class Parcel(NamedTuple):
    """What is sent along in a shipment: a borrowed descriptor, and the token under which it is found again."""

    fd: int
    token: int
    #: offsets and lengths of the bytes that go, one behind the other, as a stream; None: the file as it is
    extents: Sequence[tuple[int, int]] | None = None


#: Takes bytes that belong at an offset of a stream. Several threads may call it at once.
Sink = Callable[[int, memoryview], None]


class Stream(Protocol):
    """Bytes that came, and have to be put where they belong."""

    @property
    def size(self) -> int:
        """How many bytes."""

    def pour(self, sink: Sink) -> None:
        """Hand over all of them, piece by piece in no order; ManifestInvalid if they are not what was sent."""


class Shipment(Protocol):
    """What one box sends to the next incarnation; it exists as long as it is not discarded and its holder lives."""

    @property
    def name(self) -> str:
        """The name under which the next incarnation finds it."""

    @property
    def carrier(self) -> str:
        """What carries all but the streams."""

    def add(self, parcels: Sequence[Parcel]) -> None:
        """Take parcels, all or raise naming the token in `ParcelRefused`; once for each shipment."""

    def is_unchanged(self, token: int) -> bool:
        """Return whether the bytes of a stream are still those that were sent. Reads all of them."""

    def discard(self) -> None:
        """Let go of everything; the originals go on untouched."""

    def release(self) -> None:
        """Let go of what this process holds, for its end; what can outlive it stays."""


class Delivery(Protocol[DescriptorT_co]):
    """What came from the last incarnation under one name."""

    def fileno(self) -> int:
        """Return the descriptor that it hangs on, borrowed: while one is open somewhere, nothing of it is lost."""

    def take(self, token: int) -> DescriptorT_co:
        """Return the descriptor that was sent under `token`; the second time, one of the same open file."""

    def stream(self, token: int) -> Stream | None:
        """Return the bytes that were sent under `token`; None if it is a descriptor to `take`."""

    def finish(self, *, whole: bool = True) -> None:
        """Tell the carrier that all has been taken; what was not is freed. Not `whole`: what can be kept of it stays."""

    def abandon(self) -> None:
        """Leave it to somebody who understands it: nothing of it is freed as long as that can be."""


class Carrier(Protocol[DescriptorT_co]):
    """What takes sealed boxes across."""

    #: memory goes as it is, its pages stay where they are, and what is written to it late arrives
    in_place: bool

    @property
    def streams(self) -> bool:
        """Whether parcels may be streams."""

    @property
    def name(self) -> str:
        """What it is called, in lists and replies."""

    def now(self) -> Carrier[DescriptorT_co]:
        """Return the carrier that takes a box which is sealed now, of those that this one stands for."""

    def by_image(self) -> Carrier[DescriptorT_co]:
        """Return the one of them that needs no kernel; CannotCarry if there is none."""

    def close(self) -> None:
        """Let go of what this process holds of it, at its end."""

    def carriage(self) -> Carriage:
        """Return whether this machine has it now, and why not."""

    def probe(self, fd: int, kind: str) -> Carriage:
        """Return whether it takes a descriptor as it is, which is tried out; the answer may be an earlier one of the kind."""

    def ship(self, name: str, replacing: Shipment | None = None) -> Shipment:
        """Begin a shipment. One that it replaces is let go of as late as can be: once this one is complete."""

    def claim(self, *, has_past: bool) -> Shipment | None:
        """Return the index that a process before this one has left in this incarnation, to be replaced.

        Without its past, nothing is known of what it names: that stays, then, for the next incarnation. Raises nothing: what
        cannot be looked into is logged.
        """

    def indexes(self) -> Sequence[str]:
        """Return the names under which an index of what came may be received, the newest first.

        KernelError: the carrier cannot be asked.
        """

    def tidy(self) -> None:
        """Let go of what other incarnations have left and no index names: all indexes have been received."""

    def receive(self, name: str) -> Delivery[DescriptorT_co] | None:
        """Return what came under `name`, or None when nothing did."""

    def resume(self, name: str, fd: OwnedFd) -> Delivery[DescriptorT_co]:
        """Return a delivery that was received under `name` by a process that is no more; own its descriptor."""
