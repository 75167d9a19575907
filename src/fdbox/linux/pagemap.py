"""The physical page frames behind memory (Documentation/admin-guide/mm/pagemap.rst)."""

from __future__ import annotations

import array
import ctypes
import errno
import mmap
import os
from typing import TYPE_CHECKING

from fdbox.errors import KernelError
from fdbox.linux.fd import open_path

if TYPE_CHECKING:
    from collections.abc import Iterable

_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1
_CHUNK = 1 << 20


def frames(memory: int | mmap.mmap | bytearray | memoryview, length: int) -> list[int]:
    """Return the page frame numbers of the pages that are present, in the order of addresses.

    Args:
        memory: An address of this process, or a writable buffer.
        length: Bytes from there on; a partial page counts.

    Raises:
        KernelError: EPERM, frame numbers are hidden without CAP_SYS_ADMIN; others from reading
            /proc/self/pagemap.
    """
    address = memory if isinstance(memory, int) else _address(memory)
    present = [entry for entry in _entries(address, length) if entry & _PRESENT]
    found = [entry & _FRAME for entry in present]
    if found and not any(found):
        raise KernelError(
            "the kernel hides page frame numbers from this process",
            errno=errno.EPERM,
            remedy="run with CAP_SYS_ADMIN",
        )
    return found


def runs(frames: Iterable[int]) -> int:
    """Return how many physically contiguous runs the frames form, in whatever order they come."""
    numbers = sorted(set(frames))
    return sum(1 for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] + 1 != n)


def _address(buffer: mmap.mmap | bytearray | memoryview) -> int:
    # The ctypes object pins the buffer while it lives; only its address leaves this function.
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _entries(address: int, length: int) -> array.array[int]:
    if length <= 0:
        return array.array("Q")
    first = address // mmap.PAGESIZE
    end = (address + length - 1) // mmap.PAGESIZE + 1
    found = bytearray()
    try:
        with open_path("/proc/self/pagemap", os.O_RDONLY) as pagemap:
            for offset in range(first * 8, end * 8, _CHUNK):
                found += os.pread(pagemap.fileno(), min(_CHUNK, end * 8 - offset), offset)
    except OSError as error:
        raise KernelError(
            f"cannot read /proc/self/pagemap: {error.strerror}",
            errno=error.errno or 0,
            remedy="the kernel needs CONFIG_PROC_PAGE_MONITOR, and /proc mounted",
        ) from error
    entries = array.array("Q")
    entries.frombytes(bytes(found))
    return entries
