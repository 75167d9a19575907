"""The running kernel's own memory, through /proc/kcore: an ELF core file of it (fs/proc/kcore.c)."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

from fdbox.nextkernel.abi import Abi, Scanner

# The ELF header and a program header of 64 bits, elf(5)
_HEADER = struct.Struct("<4sBB10xHHIQQQIHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_CLASS_64, _LITTLE, _CORE = 2, 1, 4
_PT_LOAD, _PT_NOTE = 1, 4
#: where the kernel begins (with KASLR: this boot), in the notes (VMCOREINFO, kernel/vmcore_info.c)
_BEGIN = re.compile(rb"SYMBOL\(_stext\)=([0-9a-f]{1,16})\n")
_LARGEST_NOTES = 1 << 20
#: The kernel's text and data on x86 have less; elsewhere the segment is all memory that there can be.
_LARGEST = 1 << 30
_STEP = 1 << 20


def scan_kcore(path: Path = Path("/proc/kcore")) -> Abi | None:
    """Return the ABI strings in the kernel's constants and data.

    None: there is no such file, this process may not read it (it needs CAP_SYS_RAWIO, and no lockdown=confidentiality), or
    the kernel has no segment of its own in it (only x86 does).
    """
    try:
        with path.open("rb", buffering=0) as file:
            found = _kernel(file)
            return None if found is None else _scan(file, *found)
    except OSError:
        return None


def _kernel(file: BinaryIO) -> tuple[int, int] | None:
    """Return where in the file the kernel is, and how long it is."""
    segments = _segments(file)
    notes = next((segment for segment in segments if segment[0] == _PT_NOTE), None)
    if notes is None:
        return None
    begin = _BEGIN.search(_read(file, notes[2], min(notes[5], _LARGEST_NOTES)))
    if begin is None:
        return None
    at = int(begin[1], 16)
    for kind, _, offset, address, _, size, _, _ in segments:
        if kind == _PT_LOAD and address <= at < address + size:
            return (offset, size) if size <= _LARGEST else None
    return None


def _segments(file: BinaryIO) -> list[tuple[int, ...]]:
    head = _read(file, 0, _HEADER.size)
    if len(head) < _HEADER.size:
        return []
    magic, bits, order, kind, _, _, _, table, _, _, _, size, count = _HEADER.unpack(head)
    if (magic, bits, order, kind, size) != (b"\x7fELF", _CLASS_64, _LITTLE, _CORE, _SEGMENT.size):
        return []
    data = _read(file, table, count * size)
    return list(_SEGMENT.iter_unpack(data[: len(data) // size * size]))


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    """Return what is there: one read(2) of kcore may give less than was asked for."""
    file.seek(at)
    parts: list[bytes] = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _scan(file: BinaryIO, at: int, size: int) -> Abi | None:
    scanner = Scanner()
    seen = False
    for begin in range(at, at + size, _STEP):
        piece = _read(file, begin, min(_STEP, at + size - begin))
        seen = seen or b"Linux version " in piece
        scanner.feed(piece)
    # What is not mapped is read as zeros: without its own version, nothing of the kernel was there to be read.
    return scanner.result() if seen else None
