"""Every error fdbox raises: one class is one Varlink error name is one exit status.

An error names the thing it is about (`context`, which also travels as the Varlink error's parameters) and says what to
do about it (`remedy`). `docs/errors.md` has a row for each; `tests/test_house.py` keeps the three in step.
"""

from __future__ import annotations

from typing import ClassVar

INTERFACE = "io.fdbox"


class FdboxError(Exception):
    """Base of all errors raised by fdbox; raised itself for nothing."""

    exit_status: ClassVar[int] = 1
    wire_name: ClassVar[str] = f"{INTERFACE}.Failed"
    remedy: str = "see the daemon's log for what happened before"

    def __init__(self, message: str, *, remedy: str | None = None, **context: str | int) -> None:
        """Take the sentence to show, what to do about it, and what it is about."""
        super().__init__(message)
        self.message = message
        self.context = context
        if remedy is not None:
            self.remedy = remedy

    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing.override is Python 3.12
        """Return the sentence and the remedy, as the command line shows them."""
        return f"{self.message} ({self.remedy})"

    def parameters(self) -> dict[str, str | int]:
        """Return what travels in the Varlink error: message, remedy and context."""
        return {**self.context, "message": self.message, "remedy": self.remedy}


class KernelError(FdboxError):
    """Raised when the kernel refused an operation; `errno` is its reason."""

    exit_status = 10
    wire_name = f"{INTERFACE}.KernelRefused"
    remedy = "see kernel messages (dmesg) for the reason"

    def __init__(self, message: str, *, errno: int = 0, remedy: str | None = None) -> None:
        """Take the sentence, the errno (0 where the kernel gave none) and the remedy."""
        super().__init__(message, remedy=remedy, errno=errno)
        self.errno = errno


class UsageError(FdboxError):
    """Raised when a call or a command line makes no sense as it stands."""

    exit_status = 2
    wire_name = f"{INTERFACE}.InvalidUsage"
    remedy = "see `fdbox --help`"


class InvalidName(FdboxError):
    """Raised when a box or entry name is not 1-255 bytes of printable UTF-8 without a slash."""

    exit_status = 11
    wire_name = f"{INTERFACE}.InvalidName"
    remedy = "use 1 to 255 bytes of printable UTF-8 without '/'"


class BoxNotFound(FdboxError):
    """Raised when there is no such box, or none that the caller may know of."""

    exit_status = 12
    wire_name = f"{INTERFACE}.BoxNotFound"
    remedy = "`fdbox box list` shows your boxes"


class BoxExists(FdboxError):
    """Raised when a box of that name is already there and the caller wanted a new one."""

    exit_status = 13
    wire_name = f"{INTERFACE}.BoxExists"
    remedy = "use the box that is there, or another name"


class BoxSealed(FdboxError):
    """Raised when a change is asked of a box that is sealed, or being sealed."""

    exit_status = 14
    wire_name = f"{INTERFACE}.BoxSealed"
    remedy = "unseal it first (`fdbox box unseal`), or wait for the update to end"


class BoxNotSealed(FdboxError):
    """Raised when a box is to be unsealed that is open."""

    exit_status = 15
    wire_name = f"{INTERFACE}.BoxNotSealed"
    remedy = "nothing to do: the box is open"


class EntryNotFound(FdboxError):
    """Raised when a box has no entry of that name."""

    exit_status = 16
    wire_name = f"{INTERFACE}.EntryNotFound"
    remedy = "`fdbox ls BOX` shows what is in the box"


class EntryExists(FdboxError):
    """Raised when a name is taken and replacing was not asked for."""

    exit_status = 17
    wire_name = f"{INTERFACE}.EntryExists"
    remedy = "ask to replace it, or use another name"


class QuotaExceeded(FdboxError):
    """Raised when a user would hold more boxes, entries or descriptors than the configuration allows."""

    exit_status = 18
    wire_name = f"{INTERFACE}.QuotaExceeded"
    remedy = "remove something, or raise the limit under [quota] in the daemon's configuration"


class PermissionDenied(FdboxError):
    """Raised when the caller may not do this at all (an update is for root)."""

    exit_status = 19
    wire_name = f"{INTERFACE}.PermissionDenied"
    remedy = "ask root to do it"


class CannotCarry(FdboxError):
    """Raised at seal when an entry is of a kind that nothing on this machine carries across a kexec."""

    exit_status = 20
    wire_name = f"{INTERFACE}.CannotCarry"
    remedy = "remove the entry from the box before the update"


class NoRoom(FdboxError):
    """Raised when saving an entry needs more memory than is free, before any of it is taken."""

    exit_status = 21
    wire_name = f"{INTERFACE}.NoRoom"
    remedy = "free memory, or remove the entry from the box"


class LateWrite(FdboxError):
    """Raised at the jump when an entry was changed after it was saved, and still is each time it is saved again."""

    exit_status = 38
    wire_name = f"{INTERFACE}.LateWrite"
    remedy = "its program must stop using it when it hears `prepare`; then update again"


class SameIncarnation(FdboxError):
    """Raised when saved state would be loaded by the very kernel that saved it."""

    exit_status = 22
    wire_name = f"{INTERFACE}.SameIncarnation"
    remedy = "unseal the box: the originals are still here"


class ManifestInvalid(FdboxError):
    """Raised when a manifest or component is damaged, hostile, or of a version not known here."""

    exit_status = 23
    wire_name = f"{INTERFACE}.ManifestInvalid"
    remedy = "start the fdbox version that wrote it; the memory is kept until the daemon ends"


class FdtError(FdboxError):
    """Raised when a blob is not a flattened device tree, or lacks what is read from it."""

    exit_status = 24
    wire_name = f"{INTERFACE}.FdtInvalid"
    remedy = "the blob is damaged, or not from fdbox"


class UpdateInProgress(FdboxError):
    """Raised when a second update is begun, or a change comes while one runs."""

    exit_status = 25
    wire_name = f"{INTERFACE}.UpdateInProgress"
    remedy = "wait for it, or `fdbox abort`"


class NoUpdate(FdboxError):
    """Raised when an update is to be aborted, or answered, and none is running; or when none is known to tell of."""

    exit_status = 26
    wire_name = f"{INTERFACE}.NoUpdate"
    remedy = "nothing to do: `fdbox status` shows the state"


class UpdateAborted(FdboxError):
    """Raised to the one who began an update which was called off; everything is as before."""

    exit_status = 27
    wire_name = f"{INTERFACE}.UpdateAborted"
    remedy = "every box is open as it was; begin the update again when the reason is gone"


class ProtocolError(FdboxError):
    """Raised when the other side does not speak Varlink as agreed; the connection is closed."""

    exit_status = 28
    wire_name = f"{INTERFACE}.ProtocolViolated"
    remedy = "both sides must speak Varlink with descriptors as docs/protocol.md says"


class ConnectionLost(FdboxError):
    """Raised in a client when the daemon went away, or is not there."""

    exit_status = 29
    wire_name = f"{INTERFACE}.ConnectionLost"
    remedy = "start it with `fdbox serve`, or set FDBOX_SOCKET to its socket"


class InvalidDescriptor(FdboxError):
    """Raised when a call names a descriptor that did not come with it, or that is closed."""

    exit_status = 30
    wire_name = f"{INTERFACE}.InvalidDescriptor"
    remedy = "pass an open descriptor, and its index among those sent with the call"


class ConfigurationError(FdboxError):
    """Raised when the configuration file cannot be used."""

    exit_status = 31
    wire_name = f"{INTERFACE}.ConfigurationInvalid"
    remedy = "correct the file; docs/operate.md lists every setting"


class SizeMismatch(FdboxError):
    """Raised when recovered memory has another size than the one asked for."""

    exit_status = 32
    wire_name = f"{INTERFACE}.SizeMismatch"
    remedy = "ask for the size it has (leave `size` out), or remove the entry first"


class MethodNotFound(FdboxError):
    """Raised when a call names a method that the other side's interface does not have."""

    exit_status = 33
    wire_name = "org.varlink.service.MethodNotFound"
    remedy = "client and daemon are of different versions: restart the older one"


class InvalidParameter(FdboxError):
    """Raised when a call's parameters do not fit its method."""

    exit_status = 34
    wire_name = "org.varlink.service.InvalidParameter"
    remedy = "`varlinkctl introspect` shows what the method takes"


class KeeperGone(FdboxError):
    """Raised when the process that makes descriptors outlive the daemon has ended."""

    exit_status = 35
    wire_name = f"{INTERFACE}.KeeperGone"
    remedy = "what is held is safe while `fdbox serve` runs: restart it when its clients can put everything in again"


class JournalUnreadable(FdboxError):
    """Raised at the daemon's start when the note of what is held was written by a newer fdbox, or is damaged."""

    exit_status = 36
    wire_name = f"{INTERFACE}.JournalUnreadable"
    remedy = "install the fdbox that wrote it again; the keeper goes on to hold everything, and starts it"


class UpgradeRefused(FdboxError):
    """Raised when the code now on disk does not start, so that the running daemon is not replaced by it."""

    exit_status = 37
    wire_name = f"{INTERFACE}.UpgradeRefused"
    remedy = "repair the installation; the daemon that runs goes on"


class KernelImageInvalid(FdboxError):
    """Raised when a file is no kernel image that fdbox can read, or is a damaged one."""

    exit_status = 39
    wire_name = f"{INTERFACE}.KernelImageInvalid"
    remedy = "name an intact kernel image: an x86 bzImage, an arm64 Image, or an EFI zboot image"


class NextKernelUnfit(FdboxError):
    """Raised before anything is touched when the next kernel would lose what boxes hold, or would not start."""

    exit_status = 40
    wire_name = f"{INTERFACE}.NextKernelUnfit"
    remedy = "`fdbox inspect IMAGE` says what is wrong with it, and what to do"


class RehearsalFailed(FdboxError):
    """Raised when the next kernel, tried in QEMU, did not come so far that a small box is there again."""

    exit_status = 41
    wire_name = f"{INTERFACE}.RehearsalFailed"
    remedy = "see the console of the rehearsal; nothing of this machine was touched"


def _subclasses(cls: type[FdboxError]) -> list[type[FdboxError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _subclasses(child))]


def by_wire_name(name: str) -> type[FdboxError] | None:
    """Return the error class with this Varlink name, or None where fdbox has none."""
    own = (cls for cls in _subclasses(FdboxError) if "wire_name" in vars(cls))
    return next((cls for cls in own if cls.wire_name == name), None)


def from_wire(name: str, parameters: dict[str, object]) -> FdboxError:
    """Return the exception that a Varlink error reply stands for.

    `parameters` come from another process: what is not a string or a number is dropped.
    """
    context = {k: v for k, v in parameters.items() if isinstance(v, str | int)}
    message = str(context.pop("message", name))
    remedy = context.pop("remedy", None)
    cls = by_wire_name(name) or FdboxError
    error = cls.__new__(cls)
    FdboxError.__init__(error, message, remedy=None if remedy is None else str(remedy), **context)
    if isinstance(error, KernelError):
        error.errno = int(context.get("errno", 0))
    return error
