"""A power cut at any point: a disk's writes and flushes are recorded once, and many disks made that a cut could leave.

QEMU's `blklogwrites` records them, in the format of the kernel's dm-log-writes
(Documentation/admin-guide/device-mapper/log-writes.rst). After a cut there is all that was written before the last flush. Of
what was written after it, each block is there or not, at random: that is what a disk with a volatile cache promises. A
block (4 KiB) is whole.

The guest says what it has completed with marks, which it writes behind the end of the file system
(tests/vm/scripts/marks.py); so they stand in the recording in their order.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.machine import MARKS_SIZE, VmLost, format_disk

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from tests.vm.machine import Machine

BLOCK = 4096
# struct log_write_super and log_write_entry of drivers/md/dm-log-writes.c
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_MAGIC = 0x6A736677736872
_FLUSH, _FUA, _DISCARD = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Entry:
    """What the guest asked of the disk."""

    flags: int
    offset: int
    length: int
    #: where its bytes are in the log
    data: int

    @property
    def is_flush(self) -> bool:
        """Whether all before it is safe when it is done."""
        return bool(self.flags & _FLUSH)


@dataclass(frozen=True, slots=True)
class Cut:
    """A disk as a power cut leaves it, and the marks that the guest had made by then."""

    at: int
    disk: Path
    marks: tuple[str, ...]


class Recording:
    """All that was asked of a disk, in order."""

    def __init__(self, blank: Path, log: Path) -> None:
        """Take the disk as it was in the beginning, and the log."""
        self._blank = blank
        self._log = log
        self.entries = list(_entries(log))
        end = blank.stat().st_size - MARKS_SIZE
        self.marks = {
            self._bytes(entry).rstrip(b"\0").decode(): number
            for number, entry in enumerate(self.entries)
            if entry.offset >= end and not entry.flags
        }

    def cuts(self, times: int, chance: random.Random) -> Iterator[Cut]:
        """Yield disks that a cut at each point after the first mark leaves, some for each; one is gone when the next is made.

        Points differ by a request; the disks of one point by what was lost of that which was not flushed.
        """
        with tempfile.TemporaryDirectory(prefix="fdbox-cut-", dir=self._log.parent) as folder:
            safe, disk = Path(folder) / "safe", Path(folder) / "disk"
            copy(self._blank, safe)
            done = 0
            for point in range(min(self.marks.values()) + 1, len(self.entries) + 1):
                flushed = self._last_flush(point)
                self._write(safe, self.entries[done:flushed])
                done = flushed
                marks = tuple(mark for mark, at in self.marks.items() if at < point)
                for _ in range(times):
                    copy(safe, disk)
                    self._write(disk, self.entries[flushed:point], chance)
                    yield Cut(point, disk, marks)

    def end(self, disk: Path) -> Path:
        """Return `disk`, made as the machine has left it."""
        copy(self._blank, disk)
        self._write(disk, self.entries)
        return disk

    def _last_flush(self, point: int) -> int:
        flushes = (n + 1 for n in range(point - 1, -1, -1) if self.entries[n].is_flush)
        return next(flushes, 0)

    def _write(
        self, disk: Path, entries: Sequence[Entry], chance: random.Random | None = None
    ) -> None:
        """Write the entries to the disk; with `chance`, some blocks of them."""
        share = 1.0 if chance is None else chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        with disk.open("r+b", buffering=0) as file:
            for entry in entries:
                if entry.flags & _DISCARD:
                    continue  # it promises nothing
                content = self._bytes(entry)
                for at in range(0, entry.length, BLOCK):
                    if chance is None or chance.random() < share:
                        os.pwrite(file.fileno(), content[at : at + BLOCK], entry.offset + at)

    def _bytes(self, entry: Entry) -> bytes:
        with self._log.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), entry.length, entry.data)


def _entries(log: Path) -> Iterator[Entry]:
    with log.open("rb", buffering=0) as file:
        magic, version, count, sector = _SUPER.unpack(os.pread(file.fileno(), _SUPER.size, 0))
        if (magic, version) != (_MAGIC, 1):
            raise ValueError(f"{log} is no log of writes: {magic:#x}, version {version}")
        at = sector
        for _ in range(count):
            where, sectors, flags, _ = _ENTRY.unpack(os.pread(file.fileno(), _ENTRY.size, at))
            at += sector
            yield Entry(flags, where * sector, sectors * sector, at)
            if not flags & _DISCARD:
                at += sectors * sector


def record(machine: Machine, script: Path, folder: Path, *, jumps: bool = False) -> Recording:
    """Run a script and return what it asked of the disk at /run/disk; if it jumps, the machine is to end by that."""
    disk, blank, log = folder / "disk", folder / "blank", folder / "log"
    format_disk(disk, machine.disk_size)
    copy(disk, blank)
    log.touch()
    try:
        outcome = replace(machine, disk=disk, log=log).boot(script)
    except VmLost:
        if not jumps:
            raise
    else:
        if jumps or not outcome.good:
            raise AssertionError(str(outcome))
    return Recording(blank, log)


def kill(machine: Machine, script: Path, disk: Path, when: Callable[[Path], bool]) -> list[str]:
    """Run a script and kill QEMU when `when` says so of the notes; return the marks that the guest has made.

    What QEMU was given before is on `disk`, flushed or not: this cuts where `record` cannot, in the middle of a request.
    """
    format_disk(disk, machine.disk_size)
    notes = replace(machine, disk=disk).boot_until(script, when)
    return notes.get("marks", "").split()


def some_time_after(mark: str, at_most: float, chance: random.Random) -> Callable[[Path], bool]:
    """Return a condition for `kill`: a random time after a mark."""
    wait, seen = chance.uniform(0, at_most), 0.0

    def is_time(notes: Path) -> bool:
        nonlocal seen
        if not seen and (notes / "marks").exists():
            seen = time.monotonic() if mark in (notes / "marks").read_text().split() else 0.0
        return bool(seen) and time.monotonic() - seen >= wait

    return is_time


@contextmanager
def mounted(disk: Path) -> Iterator[Path]:
    """Mount a disk as the kernel does after a cut: the journal is replayed."""
    with tempfile.TemporaryDirectory(prefix="fdbox-disk-") as folder:
        subprocess.run(["mount", "-o", "loop", str(disk), folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file and its holes."""
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
