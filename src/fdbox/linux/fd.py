"""Descriptors that are owned: each is closed exactly once, here and nowhere else.

A bare `int` is a borrowed descriptor everywhere in fdbox; an `OwnedFd` is one that its holder has to close.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import termios
import warnings
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType


_INT = struct.Struct("=i")


class OwnedFd:
    """A descriptor and the duty to close it; a context manager."""

    __slots__ = ("__weakref__", "_number")

    def __init__(self, number: int) -> None:
        """Take over an open descriptor; ValueError for a negative number."""
        self._number = -1
        if number < 0:
            raise ValueError(f"{number} is not a descriptor")
        self._number = number

    @property
    def closed(self) -> bool:
        """True once the descriptor was closed or given away."""
        return self._number < 0

    def fileno(self) -> int:
        """Return the descriptor's number, borrowed; ValueError if it is closed."""
        if self._number < 0:
            raise ValueError("the descriptor is closed")
        return self._number

    def close(self) -> None:
        """Close the descriptor; nothing happens the second time.

        Linux frees the number even where close(2) fails, so it is never tried again. An error (EIO, ENOSPC, EDQUOT from
        a file system that writes late) is an OSError of what was written before.
        """
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    def detach(self) -> int:
        """Return the number and give up the duty to close it; ValueError if it is closed."""
        number = self.fileno()
        self._number = -1
        return number

    def dup(self) -> OwnedFd:
        """Return a second descriptor of the same open file, close-on-exec."""
        return dup(self.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._number < 0:
            return
        message = f"unclosed {self!r}"
        try:
            warnings.warn(message, ResourceWarning, source=self, stacklevel=2)
        finally:
            with contextlib.suppress(OSError):
                self.close()

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override is Python 3.12
        return "OwnedFd(closed)" if self._number < 0 else f"OwnedFd({self._number})"


def dup(fd: int) -> OwnedFd:
    """Return a close-on-exec duplicate of a borrowed descriptor (F_DUPFD_CLOEXEC).

    OSError: EBADF if it is not open, EMFILE at the limit.
    """
    return OwnedFd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))


def open_path(path: str | os.PathLike[str], flags: int, mode: int = 0o600) -> OwnedFd:
    """Return the file opened (open(2), always with O_CLOEXEC); OSError as the kernel gives it."""
    return OwnedFd(os.open(path, flags | os.O_CLOEXEC, mode))


def is_readable(fd: int, seconds: float = 0.0) -> bool:
    """Return whether a borrowed descriptor is readable, or becomes so in that time (poll(2): numbers may be of any size)."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def queued(fd: int) -> int:
    """Return how many bytes can be read from a borrowed pipe, socket or event queue now (FIONREAD); OSError EBADF, ENOTTY."""
    return int(_INT.unpack(fcntl.ioctl(fd, termios.FIONREAD, bytes(_INT.size)))[0])


def close_all(fds: Iterable[OwnedFd]) -> None:
    """Close every one of `fds`, also after an error; the first error is raised at the end."""
    first: OSError | None = None
    for fd in list(fds):
        try:
            fd.close()
        except OSError as error:
            first = first or error
    if first is not None:
        raise first
