"""A machine's /proc, /sys and /boot as folders, for what reads the running kernel."""

from __future__ import annotations

import gzip
import os
import struct
from typing import TYPE_CHECKING

from tests.nextkernel import images

if TYPE_CHECKING:
    from pathlib import Path

STEXT = 0xFFFFFFFF9A000000
TEXT = STEXT - 0x100


class World:
    """The files of one machine, which runs the kernel of `images`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/sys/kernel/osrelease", f"{images.RELEASE}\n")
        self.write("proc/version", f"{images.BANNER}\n")
        self.write("proc/cmdline", "quiet\n")
        self.write("proc/misc", "229 fuse\n 60 snapshot\n")

    def write(self, path: str, content: str | bytes) -> Path:
        """Write a file, and its folders."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def live(self) -> World:
        """Switch the live update on."""
        self.write("proc/misc", "229 fuse\n 61 liveupdate\n")
        return self

    def config(self, *lines: str) -> World:
        """Let /proc/config.gz say this."""
        text = 'CONFIG_CC_VERSION_TEXT="gcc (Debian 12.2.0) 12.2.0"\n' + "\n".join(lines)
        self.write("proc/config.gz", gzip.compress(text.encode()))
        return self

    def kcore(self, kernel: bytes, **options: int) -> World:
        """Let /proc/kcore have this kernel."""
        self.write("proc/kcore", core(kernel, **options))
        return self

    def image(self, kernel: bytes, path: str = f"boot/vmlinuz-{images.RELEASE}") -> Path:
        """Install an image of this kernel."""
        return self.write(path, images.bzimage(gzip.compress(kernel, mtime=0)))


def core(
    kernel: bytes, *, stext: int = STEXT, size: int = 0, bits: int = 2, notes: int = 4
) -> bytes:
    """Return an ELF core file as fs/proc/kcore.c makes it: notes, vmalloc, the kernel, all memory."""
    note = f"OSRELEASE={images.RELEASE}\nPAGESIZE=4096\nSYMBOL(_stext)={stext:x}\nKERNELOFFSET=19000000\n"
    data_at = 0x2000
    size = size or len(kernel)
    segments = [
        (notes, 0, 64 + 4 * 56, 0, 0, len(note), 0, 0),
        (
            1,
            7,
            data_at + (1 << 40),
            0xFFFFC90000000000,
            2**64 - 1,
            0x1FFFFFFFFFFF,
            0x1FFFFFFFFFFF,
            4096,
        ),
        (1, 7, data_at, TEXT, 0x1000000, size, size, 4096),
        (1, 7, data_at + (1 << 41), 0xFFFF888000001000, 0x1000, 0x9E000, 0x9E000, 4096),
    ]
    head = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", bits, 1, 1, 4, 62, 1, 0, 64, 0, 0, 64, 56, 4, 0, 0, 0
    )
    table = b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in segments)
    return (head + table + note.encode()).ljust(data_at, b"\0") + kernel


def may_see_all() -> bool:
    """Return whether a file's mode keeps nothing from this process."""
    return os.geteuid() == 0
