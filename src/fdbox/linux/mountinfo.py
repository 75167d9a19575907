"""The mounts that are seen from here (/proc/self/mountinfo, proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_TABLE = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount: its number (`mnt_id`), "major:minor", where it is, and the options of its file system."""

    number: int
    device: str
    point: str
    options: tuple[str, ...]


def mounts() -> Iterator[Mount]:
    """Yield them; OSError without /proc."""
    # Whoever mounts chooses the names: the kernel escapes space, tab and newline, and no other space that Unicode has.
    for line in _TABLE.read_bytes().split(b"\n"):
        if line:
            words = line.split(b" ")  # the source of a file system may be nothing
            behind = words[words.index(b"-", 6) + 1 :]  # type, source, options
            options = tuple(map(_text, behind[2].split(b",")))
            yield Mount(int(words[0]), words[2].decode(), _text(words[4]), options)


def _text(raw: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), raw))
