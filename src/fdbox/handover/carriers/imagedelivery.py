"""An image that has come: giving out what is in it, and letting go of it, or keeping it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from fdbox.errors import KernelError, ManifestInvalid
from fdbox.handover.carriers import imagefile, imagefolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fdbox.handover.carriers.imagefile import Stored
    from fdbox.linux.fd import OwnedFd
    from fdbox.ports import Stream


class Delivery:
    """An image of another incarnation."""

    def __init__(self, fd: OwnedFd, path: Path | None) -> None:
        self._fd = fd
        self._path = path
        self._taken: dict[int, OwnedFd] = {}
        self._is_kept = False
        #: streams that somebody has asked for, and that nobody has taken as a whole
        self._open: set[int] = set()
        self._stored: dict[int, Stored] | None = None

    def fileno(self) -> int:
        """Return the file's descriptor, borrowed."""
        return self._fd.fileno()

    def take(self, token: int) -> OwnedFd:
        """Return a parcel as a memfd; ManifestInvalid if it is damaged, or there is none."""
        if token not in self._taken:
            with self._noticing():
                self._taken[token] = imagefile.to_memory(self._find(token), "fdbox-image")
        return self._taken[token].dup()

    def stream(self, token: int) -> Stream | None:
        """Return the bytes of a parcel, or None if it went another way; ManifestInvalid if the image is damaged."""
        with self._noticing():
            stored = self._table().get(token)
        if stored is None:
            return None
        self._open.add(token)
        return imagefile.Watched(stored, lambda: self._taking(token))

    def finish(self, *, whole: bool = True) -> None:
        """Let go of an image: of a box when its index goes, of an index at once, and then of its boxes."""
        self._is_kept |= not whole
        self._close()
        if self._path is None or not self._path.exists():
            return
        try:
            if self._path.name == imagefolder.INDEX:
                imagefolder.let_go(self._path)
            elif self._is_kept or self._open:
                self._path.rename(self._path.with_suffix(".kept"))
            else:
                imagefolder.mark_done(self._path)
        except OSError as error:
            raise imagefolder.failed("remove", self._path, error) from error

    def abandon(self) -> None:
        """Keep it, whatever it is."""
        self.finish(whole=False)

    def _close(self) -> None:
        fds, self._taken = [self._fd, *self._taken.values()], {}
        for fd in fds:
            fd.close()

    def _table(self) -> dict[int, Stored]:
        if self._stored is None:
            self._stored = imagefile.read(self._fd.fileno())
        return self._stored

    def _find(self, token: int) -> Stored:
        try:
            return self._table()[token]
        except KeyError:
            raise ManifestInvalid(f"it has nothing under the token {token}") from None

    @contextlib.contextmanager
    def _taking(self, token: int) -> Iterator[None]:
        """Take a stream as a whole."""
        with self._noticing():
            yield
        self._open.discard(token)

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        """Keep a file of which something could not be made again, and say where it is."""
        kept = f"{self._path} stays, as .kept"
        try:
            yield
        except BaseException as error:
            self._is_kept = True
            if isinstance(error, ManifestInvalid):
                raise ManifestInvalid(f"the image: {error.message}", remedy=kept) from error
            if isinstance(error, OSError):
                why = f"cannot read the image: {error.strerror}"
                raise KernelError(why, errno=error.errno or 0, remedy=kept) from error
            raise
