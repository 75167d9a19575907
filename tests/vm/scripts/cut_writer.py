#!/usr/bin/env python3
"""A writer that is right, or (WRITER=hasty) leaves out every fsync: to see that the harness tells them apart."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from pathlib import Path

from tests.vm.scripts.marks import mark

FILES, SIZE, VERSIONS = 8, 100_000, 4
CURRENT = "current"
#: a file system commits what it has to say every five seconds (ext4, data=ordered)
COMMIT_SECONDS = 6.0


def content(version: int, number: int) -> bytes:
    """Return what stands in a file."""
    return random.Random(f"{version} {number}").randbytes(SIZE)


def see(folder: Path) -> str:
    """Return which version is there; AssertionError if it is not whole."""
    version = int((folder / CURRENT).read_text())
    for number in range(FILES):
        path = folder / str(version) / str(number)
        assert path.exists(), f"{path.name} of {version} is not there"
        assert path.read_bytes() == content(version, number), f"{path.name} of {version}"
    return str(version)


class Writer:
    """Replaces one version by the next one."""

    def __init__(self, folder: Path, *, is_hasty: bool) -> None:
        self._folder = folder
        self._is_hasty = is_hasty

    def write(self, version: int) -> None:
        """Write a version, then say that it is the current one, and let go of the one before."""
        files = self._folder / str(version)
        files.mkdir()
        for number in range(FILES):
            self._write(files / str(number), content(version, number))
        self._sync(files)
        self._write(self._folder / f"{CURRENT}.new", str(version).encode())
        (self._folder / f"{CURRENT}.new").rename(self._folder / CURRENT)
        self._sync(self._folder)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder / str(version - 1))

    def _write(self, path: Path, text: bytes) -> None:
        path.write_bytes(text)
        self._sync(path)

    def _sync(self, path: Path) -> None:
        if not self._is_hasty:
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def main() -> None:
    """Write several versions."""
    folder = Path("/run/disk/versions")
    folder.mkdir()
    hasty = os.environ.get("WRITER") == "hasty"
    writer = Writer(folder, is_hasty=hasty)
    for version in range(VERSIONS):
        writer.write(version)
        if version == 0:
            os.sync()
        mark(str(version))
        if hasty:
            time.sleep(COMMIT_SECONDS)


if __name__ == "__main__":
    main()
