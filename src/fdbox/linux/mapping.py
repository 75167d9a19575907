"""Files mapped for the kernel's sake: to have it look at their pages, or join them. Nothing reads through a mapping here.

(What is mapped may become shorter at any time, and whoever reads there then gets SIGBUS.)
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from typing import TYPE_CHECKING, Self

from fdbox.errors import KernelError
from fdbox.linux.syscalls import last_error, libc

if TYPE_CHECKING:
    from types import TracebackType

#: bytes of a huge page that page tables map at once (HPAGE_PMD_SIZE with pages of 4 KiB)
HUGE = 2 << 20
# include/uapi/asm-generic/mman-common.h
_MADV_POPULATE_READ = 22
_MADV_COLLAPSE = 25
_PROT_NONE = 0
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value

libc.mmap.restype = ctypes.c_void_p

_REMEDIES = {
    errno.ENOMEM: "free memory: there is no huge page to be had",
    errno.EAGAIN: "try again",
    errno.EBUSY: "somebody uses the pages just now: try again",
    errno.EINVAL: "the kernel needs CONFIG_TRANSPARENT_HUGEPAGE, and Linux 6.1",
}


class Mapping:
    """A part of a file, mapped for reading at a multiple of a huge page; a context manager."""

    def __init__(self, fd: int, offset: int, length: int) -> None:
        """Map it; `offset` is a multiple of HUGE. KernelError: EACCES, ENODEV, ENOMEM."""
        self.length = length
        self._reserved = length + HUGE
        self._at = _map(None, self._reserved, _PROT_NONE, _PRIVATE, -1, 0)
        self.address: int = -(-self._at // HUGE) * HUGE
        try:
            _map(self.address, length, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, fd, offset)
        except BaseException:
            self.close()
            raise

    def populate(self, start: int, length: int) -> bool:
        """Have the page tables filled from a range on; a hole in it becomes pages. False if it lies beyond the end now."""
        return self._advise(start, length, _MADV_POPULATE_READ) == 0

    def collapse(self, start: int) -> int:
        """Put the pages of one huge page's range together, in place; return 0 or the errno (madvise(2)): ENOMEM, EBUSY, EAGAIN, EINVAL."""
        return self._advise(start, HUGE, _MADV_COLLAPSE)

    def close(self) -> None:
        """Unmap it."""
        libc.munmap(ctypes.c_void_p(self._at), ctypes.c_size_t(self._reserved))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _advise(self, start: int, length: int, advice: int) -> int:
        # Not mmap.madvise, which keeps the interpreter's lock all the while.
        address = ctypes.c_void_p(self.address + start)
        if libc.madvise(address, ctypes.c_size_t(length), ctypes.c_int(advice)) == 0:
            return 0
        return last_error().errno or errno.EINVAL


_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


def _map(  # noqa: PLR0913, PLR0917 - as mmap(2) has it
    address: int | None, length: int, protection: int, flags: int, fd: int, offset: int
) -> int:
    found: int | None = libc.mmap(
        ctypes.c_void_p(address),
        ctypes.c_size_t(length),
        ctypes.c_int(protection),
        ctypes.c_int(flags),
        ctypes.c_int(fd),
        ctypes.c_long(offset),
    )
    if found is None or found == _FAILED:
        error = last_error()
        raise KernelError(f"cannot map descriptor {fd}: {error.strerror}", errno=error.errno or 0)
    return found


def collapse_remedy(code: int) -> str:
    """Return what to do about an errno of `collapse`."""
    return _REMEDIES.get(code, "see madvise(2)")
