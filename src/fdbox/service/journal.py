"""What the daemon's next process has to know: a log of boxes and entries, in memory that the keeper holds.

A record is its length, its CRC-32 and JSON. A change is done when its record is whole: what comes after a torn record (the
process was killed while it wrote) never happened. Descriptors themselves are with the keeper, under the `key` of an entry.

The first record states the version and the incarnation. A version that is newer than ours is refused, and stays where it is, for the code that
can read it; a new version reads all that came before it. Fields may be added without a new version if an older reader
may pass over them.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from fdbox.errors import JournalUnreadable, NoRoom
from fdbox.linux import memfd
from fdbox.model import BoxKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.linux.fd import OwnedFd

VERSION = 1
_HEAD = struct.Struct("<II")
_ROOM = 1 << 20
_MOST = 64 << 20


class Format(msgspec.Struct, frozen=True, tag="format"):
    """The first record of all: who can read what follows, and in which incarnation of the kernel it was true."""

    version: int
    incarnation: str


class Noted(msgspec.Struct, frozen=True, array_like=True):
    """An entry: the key of its descriptor, and what was seen of it, for to look again may fail, or take for ever."""

    key: str
    label: str = ""
    kind: str = ""
    size: int | None = None


class Change(msgspec.Struct, frozen=True, omit_defaults=True, tag="box"):
    """A box is there, or gone (`deleted`); entries were put under keys, or removed; its owner sealed it, or unsealed it."""

    owner: int
    box: str
    deleted: bool = False
    put: dict[str, Noted] = {}
    removed: list[str] = []
    #: None: as it was
    sealed: bool | None = None
    #: the session in which what was `put` came from the last kernel
    session: str = ""


class Arrived(msgspec.Struct, frozen=True, tag="arrived"):
    """What the last kernel left has come: this many entries in each session; none in that of an index."""

    sessions: dict[str, int] = {}


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """An entry, or a whole box, that did not arrive from the last kernel; `box` is empty where it was not even named."""

    owner: int
    box: str
    entry: str
    reason: str


class NextKernel(msgspec.Struct, frozen=True, tag="next-kernel"):
    """We have loaded a kernel for the next kexec, or taken it back."""

    loaded: bool


Record = Change | Arrived | Lost | NextKernel


@dataclass(slots=True)
class Box:
    """A box as the journal knows it."""

    entries: dict[str, Noted] = field(default_factory=dict)
    sealed: bool = False


@dataclass(slots=True)
class Contents:
    """What all records together say."""

    boxes: dict[BoxKey, Box] = field(default_factory=dict)
    #: session -> entries that came in it from the last kernel
    arrived: dict[str, int] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)
    next_kernel: bool = False

    def apply(self, record: Record) -> None:
        """Let a change happen."""
        match record:
            case Change():
                self._change(record)
            case Arrived():
                self.arrived.update(record.sessions)
            case Lost():
                self.lost.append(record)
            case NextKernel():
                self.next_kernel = record.loaded

    def _change(self, record: Change) -> None:
        key = BoxKey(record.owner, record.box)
        if record.deleted:
            self.boxes.pop(key, None)
            return
        box = self.boxes.setdefault(key, Box())
        for name in record.removed:
            box.entries.pop(name, None)
        box.entries.update(record.put)
        if record.sealed is not None:
            box.sealed = record.sealed
        if record.session:
            self.arrived[record.session] = len(record.put)

    def records(self) -> Iterator[Record]:
        """Yield the fewest records that say the same."""
        if self.next_kernel:
            yield NextKernel(loaded=True)
        yield Arrived(dict(self.arrived))
        yield from self.lost
        for key, box in self.boxes.items():
            sealed = True if box.sealed else None
            yield Change(key.owner, key.name, put=dict(box.entries), sealed=sealed)


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Format | Change | Arrived | Lost | NextKernel)


class Journal:
    """The log, in a memfd of its own."""

    def __init__(self, fd: OwnedFd) -> None:
        """Own a memfd that `new` made, in this process or in the one before.

        Raises:
            JournalUnreadable: it was written by a newer fdbox, or is none.
        """
        self._fd = fd
        self._end = self._began = 0
        self._room = os.fstat(fd.fileno()).st_size
        self.contents: Contents = Contents()
        self.incarnation: str = ""
        try:
            for raw, end in _records(fd.fileno(), self._room):
                self._read(raw, first=self._end == 0)
                self._end = end
        except BaseException:
            fd.close()
            raise

    @classmethod
    def new(cls, contents: Contents, incarnation: str) -> Journal:
        """Return a journal that begins with these contents; NoRoom."""
        journal = cls(memfd.create("fdbox-journal"))
        journal.incarnation = incarnation
        try:
            journal._append(Format(VERSION, incarnation))
            for record in contents.records():
                journal.write(record)
        except BaseException:
            journal.close()
            raise
        journal._began = journal._end
        return journal

    @property
    def grown(self) -> int:
        """Bytes written since it was new."""
        return self._end - self._began

    def fileno(self) -> int:
        """Return the memfd, borrowed."""
        return self._fd.fileno()

    def reserve(self, record: Record | Format) -> None:
        """Take the pages that `write` is going to need: a write into memory that is there cannot fail.

        Raises:
            NoRoom: there is no memory for it.
        """
        length = _HEAD.size + len(_encode(record))
        if self._end + length <= self._room:
            return
        wanted = max(self._end + length, self._room + _ROOM)
        try:
            os.posix_fallocate(self._fd.fileno(), 0, wanted)
        except OSError as error:
            raise NoRoom(f"no memory to write the change down: {error.strerror}") from error
        self._room = wanted

    def write(self, record: Record) -> None:
        """Write down a change. It is done when this returns; errors as `reserve`, and then it was not."""
        self._append(record)
        self.contents.apply(record)

    def detach(self) -> OwnedFd:
        """Return the memfd, which the caller owns from now on; nothing can be written any more."""
        return self._fd

    def close(self) -> None:
        """Close this process's descriptor of it."""
        self._fd.close()

    def _append(self, record: Record | Format) -> None:
        self.reserve(record)
        raw = _encode(record)
        os.pwrite(self._fd.fileno(), _HEAD.pack(len(raw), zlib.crc32(raw)) + raw, self._end)
        self._end += _HEAD.size + len(raw)

    def _read(self, raw: bytes, *, first: bool) -> None:
        try:
            record = _decoder.decode(raw)
        except msgspec.MsgspecError as error:
            raise JournalUnreadable(
                f"the journal of what is held has a record that makes no sense: {error}"
            ) from error
        if first != isinstance(record, Format):
            raise JournalUnreadable("the journal of what is held does not begin with its version")
        if not isinstance(record, Format):
            self.contents.apply(record)
            return
        self.incarnation = record.incarnation
        if record.version > VERSION:
            raise JournalUnreadable(
                f"what is held was written down by a newer fdbox, in version {record.version}; this one reads {VERSION}"
            )


def _records(fd: int, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield every whole record, and where it ends."""
    at = 0
    while at + _HEAD.size <= size:
        length, crc = _HEAD.unpack(os.pread(fd, _HEAD.size, at))
        raw = os.pread(fd, length, at + _HEAD.size) if 0 < length <= _MOST else b""
        if not raw or len(raw) != length or zlib.crc32(raw) != crc:
            return
        at += _HEAD.size + length
        yield raw, at
