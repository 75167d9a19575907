"""Whether what a folder holds outlives the kernel (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fdbox.linux import mountinfo, paths
from fdbox.linux.fd import open_path


def in_memory(folder: Path) -> bool | None:
    """Return whether a folder is in memory, and so ends with the kernel; OSError if it cannot be opened.

    An overlay writes to its upper folder, wherever that is. None: as seen from here, that is nowhere.
    """
    kind, device = _look_at(folder)
    if kind != paths.OVERLAY:
        return _is_memory(kind)
    with suppress(OSError):
        upper = _upper(device)
        if upper is not None:
            kind, _ = _look_at(upper)
            # No upper folder is in an overlay: that is another one, at the place where the real one is for whoever mounted it.
            return None if kind == paths.OVERLAY else _is_memory(kind)
    return None


def _is_memory(kind: int) -> bool:
    return kind in (paths.TMPFS, paths.RAMFS)


def _look_at(folder: Path) -> tuple[int, int]:
    with open_path(folder, os.O_RDONLY | os.O_DIRECTORY) as opened:
        return paths.filesystem(opened.fileno()), os.fstat(opened.fileno()).st_dev


def _upper(device: int) -> Path | None:
    """Return the upper folder of the overlay with this device number, as whoever mounted it named it; OSError without /proc."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for mount in mountinfo.mounts():
        if mount.device == wanted:
            for option in mount.options:
                name, _, value = option.partition("=")
                if name == "upperdir":
                    return Path(value)
    return None
