"""Memory that outlives the process and the kernel: a memfd in a box, mapped."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from typing import TYPE_CHECKING, Self

from fdbox.errors import KernelError, SizeMismatch, UsageError
from fdbox.linux import memfd

if TYPE_CHECKING:
    from fdbox.linux.fd import OwnedFd

_MEMFD_NAME_BYTES = 249  # what memfd_create(2) takes


class Memory(mmap.mmap):
    """A writable mapping: `memoryview(mem)`, `numpy.frombuffer(mem)` and slices work on the memory itself, uncopied."""

    name: str
    recovered: bool
    _descriptor: OwnedFd
    _bytes: int

    def __new__(cls, name: str, descriptor: OwnedFd, size: int, *, recovered: bool) -> Self:
        """Map `size` bytes of `descriptor`, which the memory owns from now on."""
        self = super().__new__(cls, descriptor.fileno(), size)
        self.name, self.recovered = name, recovered
        self._descriptor, self._bytes = descriptor, size
        return self

    @property
    def size(self) -> int:  # type: ignore[override,explicit-override] # mmap.size() asks the kernel what cannot change here
        """How many bytes it has."""
        return self._bytes

    @property
    def buffer(self) -> memoryview:
        """The memory as a writable memoryview; it must be released before `close`."""
        return memoryview(self)

    def fileno(self) -> int:
        """Return the memfd, borrowed."""
        return self._descriptor.fileno()

    def close(self) -> None:  # type: ignore[explicit-override] # typing.override is of Python 3.12
        """Unmap; the memory itself stays in its box. BufferError while a view or an array still uses it."""
        super().close()
        self._descriptor.close()

    def __exit__(self, *_exception: object) -> None:  # type: ignore[explicit-override] # as above
        """Unmap."""
        self.close()


def new_memory(name: str, size: int) -> OwnedFd:
    """Return a new memfd of `size` bytes for the entry `name`."""
    if size <= 0:
        raise UsageError(f"memory of {size} bytes cannot be", remedy="give a size of 1 or more")
    return memfd.create(name.encode()[:_MEMFD_NAME_BYTES].decode(errors="ignore"), size)


def adopt(
    name: str, descriptor: OwnedFd, size: int | None, *, huge: bool, recovered: bool
) -> Memory:
    """Return `descriptor` mapped, or close it and raise.

    Raises:
        SizeMismatch: it has another size than `size`.
        UsageError: it is not memory, or cannot be written.
    """
    try:
        memory = Memory(
            name, descriptor, _checked_size(name, descriptor, size), recovered=recovered
        )
    except OSError as error:
        descriptor.close()
        raise KernelError(
            f"cannot map {name!r}: {error.strerror}", errno=error.errno or 0
        ) from error
    except BaseException:
        descriptor.close()
        raise
    if huge:
        _advise(memory)
    return memory


def _advise(memory: Memory) -> None:
    """Ask for huge pages; memory without them is slower to hand over, and as good otherwise."""
    try:
        memfd.madvise_hugepage(memory)
    except KernelError:
        return


def _checked_size(name: str, descriptor: OwnedFd, size: int | None) -> int:
    found = os.fstat(descriptor.fileno())
    flags = fcntl.fcntl(descriptor.fileno(), fcntl.F_GETFL)
    if not stat.S_ISREG(found.st_mode) or flags & os.O_ACCMODE != os.O_RDWR or not found.st_size:
        raise UsageError(
            f"the entry {name!r} is not writable memory",
            remedy="`get` it as the descriptor that it is, or use another name",
        )
    if size is not None and size != found.st_size:
        raise SizeMismatch(
            f"the memory {name!r} has {found.st_size} bytes, not {size}",
            entry=name,
            size=found.st_size,
        )
    return found.st_size
