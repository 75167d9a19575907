"""A file that has its name only when it is complete, and never takes the place of another (open(2), link(2), renameat2(2)).

Until then it has none (O_TMPFILE), and is gone with whoever writes it. Where the file system has no such files, it has
one that nobody can know beforehand.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from typing import TYPE_CHECKING, Self

from fdbox.linux.fd import OwnedFd, open_path
from fdbox.linux.syscalls import syscall

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_RENAME_NOREPLACE = 1  # include/uapi/linux/fs.h
#: a file system without them (FAT)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


class NewFile:
    """A file to be written, open for reading and writing; a context manager, at whose end it is gone unless it was kept."""

    def __init__(self, path: Path) -> None:
        """Begin a file for its owner alone.

        OSError: EEXIST for what is there already, a symbolic link that leads nowhere too; else as open(2) gives it.
        """
        self._name = path.name
        #: what it is called meanwhile
        self._draft: str | None = None
        self._folder = open_path(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._check_absent(path)
            self._file = self._begin()
        except BaseException:
            self._folder.close()
            raise

    def fileno(self) -> int:
        """Return the file's descriptor, borrowed."""
        return self._file.fileno()

    def keep(self) -> None:
        """Give it its name, and make both outlive a power cut.

        OSError: EEXIST if something of that name is there; else as linkat(2), renameat2(2) and fsync(2) give it.
        """
        os.fsync(self.fileno())
        try:
            self._link()
        except OSError as error:
            if self._draft is None or error.errno not in _NO_LINKS:
                raise
            self._rename(self._draft)
        os.fsync(self._folder.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._draft is not None:
                os.unlink(self._draft, dir_fd=self._folder.fileno())
        finally:
            self._file.close()
            self._folder.close()

    def _check_absent(self, path: Path) -> None:
        try:
            os.lstat(self._name, dir_fd=self._folder.fileno())
        except FileNotFoundError:
            return
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    def _begin(self) -> OwnedFd:
        at, flags = self._folder.fileno(), os.O_RDWR | os.O_CLOEXEC
        # There may be no O_TMPFILE; anything else stops the next call, too.
        with contextlib.suppress(OSError):
            return OwnedFd(os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=at))
        draft = f".fdbox-{secrets.token_hex(16)}"
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        made = OwnedFd(os.open(draft, flags, 0o600, dir_fd=at))
        self._draft = draft
        return made

    def _link(self) -> None:
        at = self._folder.fileno()
        os.link(f"/proc/self/fd/{self.fileno()}", self._name, src_dir_fd=at, dst_dir_fd=at)

    def _rename(self, draft: str) -> None:
        at = self._folder.fileno()
        old, new = os.fsencode(draft), os.fsencode(self._name)
        syscall("renameat2", at, old, at, new, _RENAME_NOREPLACE)
        self._draft = None
