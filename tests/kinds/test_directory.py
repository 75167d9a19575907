from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Any

from fdbox.linux.fd import open_path
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def opened(flags: int) -> Callable[[Path], Entries]:
    def make(folder: Path) -> Entries:
        for name in ("a", "b", "c"):
            (folder / name).touch()
        return {"directory": open_path(folder, flags)}

    return make


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    fd = fds["directory"]
    assert os.path.samestat(os.fstat(fd), folder.stat())
    position = os.lseek(fd, 0, os.SEEK_CUR)
    return [fcntl.fcntl(fd, fcntl.F_GETFL), position, sorted(os.listdir(fd))]


SAMPLES = [
    Sample(f"directory {name}", {"directory": "directory"}, opened(flags), observe)
    for name, flags in (
        ("plain", os.O_RDONLY),
        ("with flags", os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME),
    )
]
