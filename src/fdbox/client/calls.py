"""What a client says and what it makes of the answers, sans-IO; `sync` and `aio` only carry it to and fro."""

from __future__ import annotations

import errno
import math
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec

from fdbox import errors
from fdbox.errors import (
    INTERFACE,
    ConnectionLost,
    InvalidParameter,
    MethodNotFound,
    ProtocolError,
    UsageError,
)
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.varlink import interface, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

R = TypeVar("R", bound=msgspec.Struct)


class HasFileno(Protocol):
    """An open file, a socket, an `OwnedFd`: what has a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""


Descriptor = int | HasFileno


class Request(msgspec.Struct, Generic[R], frozen=True):
    """A call to make: its method, what goes with it, and what the reply looks like."""

    method: str
    parameters: msgspec.Struct
    reply: type[R]
    descriptors: tuple[int, ...] = ()
    more: bool = False

    def encode(self) -> bytes:
        """Return the message; UsageError for text that is none, as a command line's can be."""
        try:
            return wire.encode_call(f"{INTERFACE}.{self.method}", self.parameters, more=self.more)
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{error.object!r} is no UTF-8, and cannot be sent", remedy="write it in UTF-8"
            ) from error


#: How often a call is made while the daemon goes away under it.
ATTEMPTS = 5
#: What can be asked once more when nobody knows whether it was done, for it changes nothing.
_REPEATABLE = ("Get", "ListEntries", "ListBoxes", "Status")


class NotRead(ConnectionLost):
    """Raised when the daemon went away before it had read the call, so that it was certainly not done.

    The kernel tells: a Unix socket that is closed with unread bytes in it resets its peer (ECONNRESET), one that is closed
    already takes nothing (EPIPE), and one that has read everything just ends (unix(7), net/unix/af_unix.c).
    """


def may_repeat(request: Request[R], lost: ConnectionLost) -> bool:
    """Return whether a call that got no answer may simply be made again."""
    return isinstance(lost, NotRead) or request.method in _REPEATABLE


class Answer(msgspec.Struct, Generic[R]):
    """A reply: its parameters, the descriptors that came with it, and whether more replies follow."""

    parameters: R
    descriptors: list[OwnedFd]
    continues: bool


def interpret(request: Request[R], message: wire.Message[OwnedFd]) -> Answer[R]:
    """Return the answer to `request` in a message, or raise the error that it is; then its descriptors are closed.

    Raises:
        FdboxError: the daemon answered with an error.
        ProtocolError: the daemon answered something that is not in the interface.
    """
    try:
        header = wire.decode_reply(message.text)
        if header.error is not None:
            raise _error(request, header.error, header.parameters)  # noqa: TRY301 - closes what came
        try:
            parameters = msgspec.json.decode(header.parameters, type=request.reply)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"a reply to {request.method} makes no sense: {error}") from error
    except BaseException:
        close_all(message.descriptors)
        raise
    return Answer(parameters, message.descriptors, header.continues)


def _error(request: Request[R], name: str, raw: msgspec.Raw) -> errors.FdboxError:
    try:
        parameters = msgspec.json.decode(raw, type=dict[str, object])
    except msgspec.MsgspecError:
        parameters = {}
    if name == InvalidParameter.wire_name and "message" not in parameters:
        which = parameters.get("parameter", "?")
        parameters["message"] = f"the daemon does not take {which!r} in {request.method}"
    elif name == MethodNotFound.wire_name:
        parameters["message"] = f"the daemon has no method {request.method}"
    return errors.from_wire(name, parameters)


def _number(descriptor: Descriptor) -> int:
    return descriptor if isinstance(descriptor, int) else descriptor.fileno()


# --- one function a method -----------------------------------------------------------------------------------------


def create_box(
    box: str, owner: int | None, *, exclusive: bool
) -> Request[interface.CreateBoxReply]:
    """Create a box, or open the one that is there."""
    parameters = interface.CreateBox(box=box, owner=owner, exclusive=exclusive)
    return Request("CreateBox", parameters, interface.CreateBoxReply)


def delete_box(box: str, owner: int | None) -> Request[interface.Nothing]:
    """Delete a box and what is in it."""
    return Request("DeleteBox", interface.BoxRequest(box=box, owner=owner), interface.Nothing)


def list_boxes() -> Request[interface.ListBoxesReply]:
    """List the boxes that the caller may see."""
    return Request("ListBoxes", interface.Nothing(), interface.ListBoxesReply)


def put(
    box: str, owner: int | None, entries: Mapping[str, Descriptor], *, replace: bool
) -> Request[interface.EntriesReply]:
    """Put descriptors under names, all or none.

    Raises:
        UsageError: these are more than one message can carry.
    """
    if len(entries) > wire.MAX_DESCRIPTORS:
        raise UsageError(
            f"{len(entries)} descriptors are too many for one put, which is all or nothing",
            remedy=f"put at most {wire.MAX_DESCRIPTORS} at a time",
        )
    attached = [
        interface.Attachment(name=name, file_descriptor=index) for index, name in enumerate(entries)
    ]
    parameters = interface.Put(box=box, owner=owner, entries=attached, replace=replace)
    descriptors = tuple(_number(descriptor) for descriptor in entries.values())
    return Request("Put", parameters, interface.EntriesReply, descriptors)


def get(box: str, owner: int | None, names: Sequence[str]) -> Iterator[Request[interface.GetReply]]:
    """Get entries, in as many calls as it takes."""
    for start in range(0, len(names), wire.MAX_DESCRIPTORS):
        part = list(names[start : start + wire.MAX_DESCRIPTORS])
        parameters = interface.NamesRequest(box=box, owner=owner, names=part)
        yield Request("Get", parameters, interface.GetReply)


def sort_out(answer: Answer[interface.GetReply], found: dict[str, OwnedFd]) -> None:
    """Move the descriptors of a Get reply to `found`, under their names.

    Raises:
        ProtocolError: the reply names a descriptor that is not there. All of the reply's are closed then.
    """
    slots: list[OwnedFd | None] = [*answer.descriptors]
    try:
        for entry in answer.parameters.entries:
            index = entry.file_descriptor
            descriptor = slots[index] if 0 <= index < len(slots) else None
            if descriptor is None or entry.name in found:
                raise ProtocolError(f"the daemon sent no descriptor for {entry.name!r}")
            found[entry.name] = descriptor
            slots[index] = None
    finally:
        close_all([slot for slot in slots if slot is not None])


def remove(box: str, owner: int | None, names: Iterable[str]) -> Request[interface.Nothing]:
    """Remove entries."""
    parameters = interface.NamesRequest(box=box, owner=owner, names=list(names))
    return Request("Remove", parameters, interface.Nothing)


def list_entries(box: str, owner: int | None) -> Request[interface.EntriesReply]:
    """List what is in a box."""
    parameters = interface.BoxRequest(box=box, owner=owner)
    return Request("ListEntries", parameters, interface.EntriesReply)


def export_box(box: str, owner: int | None, file: Descriptor) -> Request[interface.ExportReply]:
    """Write a box to an empty file."""
    parameters = interface.Export(box=box, owner=owner, file_descriptor=0)
    return Request("Export", parameters, interface.ExportReply, (_number(file),))


def import_box(
    name: str | None, owner: int | None, file: Descriptor
) -> Request[interface.ImportReply]:
    """Make a box of a file."""
    parameters = interface.Import(box=name, owner=owner, file_descriptor=0)
    return Request("Import", parameters, interface.ImportReply, (_number(file),))


def predict() -> Request[interface.PredictReply]:
    """Ask what memory will cost an update."""
    return Request("Predict", interface.Nothing(), interface.PredictReply)


def compact(box: str, owner: int | None) -> Request[interface.CompactReply]:
    """Put the memory of a box together."""
    return Request("Compact", interface.BoxRequest(box=box, owner=owner), interface.CompactReply)


def seal(box: str, owner: int | None) -> Request[interface.BoxReply]:
    """Seal a box."""
    return Request("Seal", interface.BoxRequest(box=box, owner=owner), interface.BoxReply)


def unseal(box: str, owner: int | None) -> Request[interface.BoxReply]:
    """Unseal a box."""
    return Request("Unseal", interface.BoxRequest(box=box, owner=owner), interface.BoxReply)


def status() -> Request[interface.StatusReply]:
    """Ask how the daemon is."""
    return Request("Status", interface.Nothing(), interface.StatusReply)


class UpdateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an update is to be made; see `Client.update`."""

    dry_run: bool = False
    timeout: float | None = None
    on_deadline: str | None = None
    on_late_write: str | None = None
    images_only: bool = False
    force: bool = False


def update(
    kernel: Descriptor | None, initrd: Descriptor | None, command_line: str, options: UpdateOptions
) -> Request[interface.UpdateReply]:
    """Begin a live update and watch it."""
    if options.on_deadline not in (None, "abort", "proceed"):
        raise UsageError("on_deadline is 'abort' or 'proceed'")
    if options.on_late_write not in (None, "retry", "abort"):
        raise UsageError("on_late_write is 'retry' or 'abort'")
    if options.timeout is not None and not math.isfinite(options.timeout):
        # JSON has no such number: it would go as null, which means the daemon's default.
        raise UsageError(
            f"a timeout of {options.timeout} s cannot be", remedy="use a number of seconds"
        )
    images = [image for image in (kernel, initrd) if image is not None]
    parameters = interface.Update(
        kernel=None if kernel is None else 0,
        initrd=None if initrd is None else len(images) - 1,
        command_line=command_line,
        dry_run=options.dry_run,
        timeout_seconds=options.timeout,
        on_deadline="proceed" if options.on_deadline == "proceed" else "abort",
        on_late_write="abort" if options.on_late_write == "abort" else "retry",
        carrier="image" if options.images_only else None,
        force=options.force,
    )
    descriptors = tuple(_number(image) for image in images)
    return Request("Update", parameters, interface.UpdateReply, descriptors, more=True)


def last_update() -> Request[interface.LastUpdateReply]:
    """Ask how the last update went."""
    return Request("LastUpdate", interface.Nothing(), interface.LastUpdateReply)


def abort_update() -> Request[interface.Nothing]:
    """Call the update off."""
    return Request("AbortUpdate", interface.Nothing(), interface.Nothing)


def reexec() -> Request[interface.ReexecReply]:
    """Have the code now on disk take over."""
    return Request("Reexec", interface.Nothing(), interface.ReexecReply)


def subscribe(name: str) -> Request[interface.SubscribeReply]:
    """Hear of updates."""
    return Request("Subscribe", interface.Subscribe(name=name), interface.SubscribeReply, more=True)


def ready(subscriber: str) -> Request[interface.Nothing]:
    """Say that this subscriber has done its last writing."""
    return Request("Ready", interface.Ready(subscriber=subscriber), interface.Nothing)


_NOT_READ = (errno.EPIPE, errno.ECONNRESET)


def lost(
    error: BaseException, path: object, close: Callable[[], None], *, is_closed: bool
) -> BaseException:
    """Return what to raise for `error` in the middle of a call, and close the connection: it is of no use any more.

    It stays open when the descriptor to send was closed: the kernel says so before a byte is sent.
    """
    if isinstance(error, OSError) and error.errno == errno.EBADF and not is_closed:
        return errors.InvalidDescriptor("a descriptor to send is closed")
    close()
    if isinstance(error, OSError) and (is_closed or error.errno in _NOT_READ):
        return NotRead(f"the connection to {path} is lost: {error}", remedy="call again")
    if isinstance(error, OSError | ValueError | EOFError):
        return ConnectionLost(
            f"the connection to {path} is lost: {error}",
            remedy="call again: it connects anew; `list` shows whether the call was done",
        )
    return error


def check_complete(found: Mapping[str, OwnedFd], wanted: Sequence[str]) -> None:
    """Raise ProtocolError unless the daemon sent exactly what was asked for."""
    if set(found) != set(wanted):
        raise ProtocolError("the daemon sent other entries than it was asked for")
