"""What lies on top in an overlay (Documentation/filesystems/overlayfs.rst, proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
from pathlib import Path


def upper(device: int) -> str | None:
    """Return the upper folder of the overlay with this device number (st_dev), as whoever mounted it named it.

    It may be elsewhere, or nowhere, as seen from here. None: it has none, so nothing can be written; or it is not mounted here.
    OSError without /proc.
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        words = line.split()
        tail = words[words.index("-") + 1 :]  # file system, source, its options
        if words[2] == wanted and tail[0] == "overlay":
            options = dict(option.partition("=")[::2] for option in tail[-1].split(","))
            return options.get("upperdir")
    return None
