from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.linux import lasting, mountinfo

if TYPE_CHECKING:
    import pytest


def test_the_mounts_of_this_process_are_read() -> None:
    found = {mount.point: mount for mount in mountinfo.mounts()}
    status = Path("/proc").stat()
    assert found["/proc"].device == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    assert set(found["/proc"].options) & {"rw", "ro"}


def test_whoever_mounts_chooses_the_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"1 0 0:98 / /a\\040b\xe2\x80\x83c\x0cd\x85 rw shared:1 - tmpfs  rw\n"
        b"2 1 0:99 / /\xff rw - overlay  rw,lowerdir=/l,upperdir=/u\\040x\n"
    )
    monkeypatch.setattr(mountinfo, "_TABLE", table)
    first, second = mountinfo.mounts()
    assert os.fsencode(first.point) == b"/a b\xe2\x80\x83c\x0cd\x85"
    assert (first.number, first.device, first.options) == (1, "0:98", ("rw",))
    assert os.fsencode(second.point) == b"/\xff"
    assert second.options == ("rw", "lowerdir=/l", "upperdir=/u x")
    assert lasting._upper(os.makedev(0, 99)) == Path("/u x")
    assert lasting._upper(os.makedev(0, 98)) is None
