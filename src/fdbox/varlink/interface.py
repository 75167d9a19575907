"""The parameters and replies of every io.fdbox method, as `io.fdbox.varlink` states them; both sides use these."""

from __future__ import annotations

from typing import Literal

import msgspec


class _Struct(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):
    """A part of a request: field names are camelCase on the wire, and an unknown one is an error."""


class _Told(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A part of a reply: the daemon may be newer than who asks, so what is unknown is passed over."""


class Box(_Told, frozen=True, kw_only=True):
    """A box as listed: its owner is a uid, `entries` a count."""

    name: str
    owner: int
    state: Literal["open", "sealing", "sealed"]
    entries: int


class Entry(_Told, frozen=True, kw_only=True):
    """An entry as listed: `size` in bytes; `carrier` is None where nothing carries it, and `obstacle` says why."""

    name: str
    kind: str
    label: str
    size: int | None
    carrier: str | None
    obstacle: str
    remedy: str


class Attachment(_Struct, frozen=True, kw_only=True):
    """An entry name and the index of its descriptor among those sent with the message."""

    name: str
    file_descriptor: int


class Loss(_Told, frozen=True, kw_only=True):
    """What did not arrive from the last kernel; `entry` is empty when it was a whole box."""

    box: str
    owner: int
    entry: str
    reason: str


class Nothing(_Struct, frozen=True, kw_only=True):
    """No parameters, or an empty reply."""


class BoxRequest(_Struct, frozen=True, kw_only=True):
    """Names a box; `owner` None means the caller's own."""

    box: str
    owner: int | None = None


class CreateBox(BoxRequest, frozen=True, kw_only=True):
    """Create a box, or open the one that is there unless `exclusive`."""

    exclusive: bool | None = None


class CreateBoxReply(_Told, frozen=True, kw_only=True):
    """The box, and whether this call made it."""

    box: Box
    created: bool


class ListBoxesReply(_Told, frozen=True, kw_only=True):
    """All boxes that the caller may see."""

    boxes: list[Box]


class Put(BoxRequest, frozen=True, kw_only=True):
    """Put descriptors under names, all or none."""

    entries: list[Attachment]
    replace: bool | None = None


class EntriesReply(_Told, frozen=True, kw_only=True):
    """Entries as listed."""

    entries: list[Entry]


class NamesRequest(BoxRequest, frozen=True, kw_only=True):
    """Names entries of a box."""

    names: list[str]


class GetReply(_Told, frozen=True, kw_only=True):
    """The entries asked for, in the order asked."""

    entries: list[Attachment]


class Export(BoxRequest, frozen=True, kw_only=True):
    """Write a box to an empty file, the index of whose descriptor is given."""

    file_descriptor: int


class ExportReply(_Told, frozen=True, kw_only=True):
    """How large the file has become."""

    bytes: int


class Import(_Struct, frozen=True, kw_only=True):
    """Make a box of a file; `box` None: with the name that it had."""

    box: str | None = None
    owner: int | None = None
    file_descriptor: int


class ImportReply(_Told, frozen=True, kw_only=True):
    """The new box, its entries, and what of them could not be made."""

    box: Box
    entries: list[Entry]
    lost: list[Loss]


class Layout(_Told, frozen=True, kw_only=True):
    """How memory lies; `runs` None: not known."""

    pages: int
    huge_pages: int
    runs: int | None


class Prediction(_Told, frozen=True, kw_only=True):
    """What the memory of a box adds to an update that the kernel carries."""

    box: str
    owner: int
    layout: Layout
    preserve_seconds: float
    boot_seconds: float
    retrieve_seconds: float


class PredictReply(_Told, frozen=True, kw_only=True):
    """Every box, and all of them together."""

    boxes: list[Prediction]
    total: Prediction


class Compacted(_Told, frozen=True, kw_only=True):
    """How a memory lay, how it lies now, and what could not be put together."""

    entry: str
    before: Layout
    after: Layout
    left: str


class CompactReply(_Told, frozen=True, kw_only=True):
    """Every memory of the box."""

    entries: list[Compacted]


class BoxReply(_Told, frozen=True, kw_only=True):
    """One box."""

    box: Box


class Update(_Struct, frozen=True, kw_only=True):
    """Begin a live update; `kernel` and `initrd` are descriptor indices, `timeout_seconds` for the subscribers."""

    kernel: int | None = None
    initrd: int | None = None
    command_line: str
    dry_run: bool | None = None
    timeout_seconds: float | None = None
    on_deadline: Literal["abort", "proceed"] | None = None
    on_late_write: Literal["retry", "abort"] | None = None
    carrier: Literal["image"] | None = None
    force: bool | None = None


class Load(_Told, frozen=True, kw_only=True):
    """How many entries of a box, and bytes of them, a carrier takes."""

    box: str
    owner: int
    carrier: str
    entries: int
    bytes: int


class UpdateReply(_Told, frozen=True, kw_only=True):
    """Where an update stands, which subscribers are not ready yet, and what takes how much, once that is known."""

    phase: str
    waiting: list[str]
    detail: str
    loads: list[Load] = []
    warnings: list[str] = []


class LeftEntry(_Told, frozen=True, kw_only=True):
    """An entry that left."""

    name: str
    kind: str
    carrier: str
    bytes: int


class LeftBox(_Told, frozen=True, kw_only=True):
    """A box that left."""

    box: str
    owner: int
    entries: list[LeftEntry]


class LastUpdateReply(_Told, frozen=True, kw_only=True):
    """How an update went: when each phase began (nanoseconds since 1970), what left, and what is missing."""

    incarnation: str
    phases: dict[str, int]
    boxes: list[LeftBox]
    failure: str | None = None
    arrived: int | None = None
    missing: list[Loss] = []


class Subscribe(_Struct, frozen=True, kw_only=True):
    """Ask to hear of updates; `name` is shown to the one who waits."""

    name: str


class SubscribeReply(_Told, frozen=True, kw_only=True):
    """`event` is subscribed, prepare or aborted; `subscriber` is the key for Ready."""

    event: str
    subscriber: str
    timeout_seconds: float | None = None


class Ready(_Struct, frozen=True, kw_only=True):
    """Say that this subscriber has done its last writing."""

    subscriber: str


class StatusReply(_Told, frozen=True, kw_only=True):
    """The daemon's state, and what the last handover brought and lost.

    `images` is the folder of images, `kept` whether the keeper is there; an older daemon says neither.
    """

    version: str
    incarnation: str
    phase: str
    waiting: list[str]
    carrier: str | None
    obstacle: str
    remedy: str
    boxes: int
    entries: int
    arrived: int
    lost: list[Loss]
    images: str = ""
    kept: bool = True


class ReexecReply(_Told, frozen=True, kw_only=True):
    """The version of the code that takes over."""

    version: str


class Method(msgspec.Struct, frozen=True):
    """What one method takes and gives, whether it takes descriptors, and whether it may answer more than once."""

    request: type[msgspec.Struct]
    reply: type[msgspec.Struct]
    takes_descriptors: bool = False
    more: bool = False


METHODS: dict[str, Method] = {
    "CreateBox": Method(CreateBox, CreateBoxReply),
    "DeleteBox": Method(BoxRequest, Nothing),
    "ListBoxes": Method(Nothing, ListBoxesReply),
    "Put": Method(Put, EntriesReply, takes_descriptors=True),
    "Get": Method(NamesRequest, GetReply),
    "Remove": Method(NamesRequest, Nothing),
    "ListEntries": Method(BoxRequest, EntriesReply),
    "Export": Method(Export, ExportReply, takes_descriptors=True),
    "Import": Method(Import, ImportReply, takes_descriptors=True),
    "Predict": Method(Nothing, PredictReply),
    "Compact": Method(BoxRequest, CompactReply),
    "Seal": Method(BoxRequest, BoxReply),
    "Unseal": Method(BoxRequest, BoxReply),
    "Update": Method(Update, UpdateReply, takes_descriptors=True, more=True),
    "AbortUpdate": Method(Nothing, Nothing),
    "LastUpdate": Method(Nothing, LastUpdateReply),
    "Subscribe": Method(Subscribe, SubscribeReply, more=True),
    "Ready": Method(Ready, Nothing),
    "Status": Method(Nothing, StatusReply),
    "Reexec": Method(Nothing, ReexecReply),
}
