"""What the guest has completed, for the one who cuts its power."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from fdbox.linux.fd import open_path
from tests.vm.machine import MARKS_SIZE
from tests.vm.scripts import goods

DISK = Path("/dev/vda")


def mark(name: str) -> None:
    """Say that all before is complete: behind the end of the file system, where a recording of the disk has it, and in a note.

    It is no flush: nothing becomes safe by it.
    """
    with mmap.mmap(-1, mmap.PAGESIZE) as page, open_path(DISK, os.O_WRONLY | os.O_DIRECT) as fd:
        page.write(name.encode())
        os.pwrite(fd.fileno(), page, os.lseek(fd.fileno(), 0, os.SEEK_END) - MARKS_SIZE)
    with (goods.NOTES / "marks").open("a") as file:
        file.write(f"{name}\n")
