"""What the daemon's next process has to know: a log of boxes and entries, in memory that the keeper holds.

A record is its length, its CRC-32 and JSON. A change is done when its record is whole: what comes after a torn record (the
process was killed while it wrote) never happened. Descriptors themselves are with the keeper, under the `key` of an entry.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING

import msgspec

from fdbox.errors import NoRoom
from fdbox.linux import memfd
from fdbox.model import BoxKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fdbox.linux.fd import OwnedFd

_HEAD = struct.Struct("<II")
_ROOM = 1 << 20
_MOST = 64 << 20


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change: a box is there (`created`), or gone (`deleted`); entries were put under keys, or removed."""

    owner: int
    box: str
    deleted: bool = False
    #: name -> key of its descriptor, and its label
    put: dict[str, tuple[str, str]] = {}
    removed: list[str] = []


#: box -> entry -> key of its descriptor, and its label
Contents = dict[BoxKey, dict[str, tuple[str, str]]]

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Record)


class Journal:
    """The log, in a memfd of its own."""

    def __init__(self, fd: OwnedFd) -> None:
        """Own a memfd that `new` made, in this process or in the one before."""
        self._fd = fd
        self._end = self._began = 0
        self._room = os.fstat(fd.fileno()).st_size
        self.contents: Contents = {}
        for record, end in _records(fd.fileno(), self._room):
            _apply(self.contents, record)
            self._end = end

    @classmethod
    def new(cls, contents: Mapping[BoxKey, Mapping[str, tuple[str, str]]]) -> Journal:
        """Return a journal that begins with these contents."""
        journal = cls(memfd.create("fdbox-journal"))
        try:
            for key, entries in contents.items():
                journal.write(Record(key.owner, key.name, put=dict(entries)))
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

    def reserve(self, record: Record) -> None:
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
        self.reserve(record)
        raw = _encode(record)
        os.pwrite(self._fd.fileno(), _HEAD.pack(len(raw), zlib.crc32(raw)) + raw, self._end)
        self._end += _HEAD.size + len(raw)
        _apply(self.contents, record)

    def close(self) -> None:
        """Close this process's descriptor of it."""
        self._fd.close()


def _records(fd: int, size: int) -> Iterator[tuple[Record, int]]:
    """Yield every whole record, and where it ends."""
    at = 0
    while at + _HEAD.size <= size:
        length, crc = _HEAD.unpack(os.pread(fd, _HEAD.size, at))
        raw = os.pread(fd, length, at + _HEAD.size) if 0 < length <= _MOST else b""
        if not raw or len(raw) != length or zlib.crc32(raw) != crc:
            return
        at += _HEAD.size + length
        yield _decoder.decode(raw), at


def _apply(contents: Contents, record: Record) -> None:
    key = BoxKey(record.owner, record.box)
    if record.deleted:
        contents.pop(key, None)
        return
    entries = contents.setdefault(key, {})
    for name in record.removed:
        entries.pop(name, None)
    entries.update(record.put)
