"""ioctl numbers as the kernel's macros compute them (include/uapi/asm-generic/ioctl.h)."""

from __future__ import annotations

import fcntl
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

# dir:2 | size:14 | type:8 | nr:8. powerpc, mips, sparc and alpha have dir:3 | size:13 and other directions.
_OTHER_LAYOUT = platform.machine().startswith(("ppc", "mips", "sparc", "alpha"))
_SIZE_SHIFT = 16
_DIR_SHIFT = 29 if _OTHER_LAYOUT else 30
_NONE, _WRITE, _READ = (1, 4, 2) if _OTHER_LAYOUT else (0, 1, 2)


def _ioc(direction: int, kind: int, number: int, size: int) -> int:
    if not (0 <= kind < 256 and 0 <= number < 256 and 0 <= size < 1 << (_DIR_SHIFT - _SIZE_SHIFT)):
        raise ValueError(f"no ioctl has type {kind}, number {number}, size {size}")
    return direction << _DIR_SHIFT | size << _SIZE_SHIFT | kind << 8 | number


def _IO(kind: int, number: int) -> int:  # noqa: N802  the kernel's name
    """Return the request of an ioctl that carries nothing, or says nothing of what it carries."""
    return _ioc(_NONE, kind, number, 0)


def _IOR(kind: int, number: int, size: int) -> int:  # noqa: N802
    """Return the request of an ioctl that fills `size` bytes."""
    return _ioc(_READ, kind, number, size)


def _IOW(kind: int, number: int, size: int) -> int:  # noqa: N802
    """Return the request of an ioctl that reads `size` bytes."""
    return _ioc(_WRITE, kind, number, size)


def _IOWR(kind: int, number: int, size: int) -> int:  # noqa: N802
    """Return the request of an ioctl that reads and fills `size` bytes."""
    return _ioc(_READ | _WRITE, kind, number, size)


IO, IOR, IOW, IOWR = _IO, _IOR, _IOW, _IOWR


def ioctl(fd: int, request: int, buffer: ctypes.Structure | bytearray | int = 0) -> int:
    """Return the kernel's answer; `buffer` is changed in place. OSError as the kernel gives it."""
    if isinstance(buffer, int):
        return fcntl.ioctl(fd, request, buffer)
    return int(fcntl.ioctl(fd, request, buffer, True))  # noqa: FBT003  positional only in Python
