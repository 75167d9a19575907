"""Chunks from files that do not give at once what was asked for."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from fdbox.errors import ManifestInvalid
from fdbox.handover.carriers import chunks
from fdbox.linux import files, memfd

if TYPE_CHECKING:
    from pathlib import Path

SIZE = chunks.SIZE + 5000


@pytest.mark.parametrize(
    ("most", "goes_on"), [(1, False), (4095, False), (4096, True), (1 << 20, True)]
)
def test_a_read_that_gives_less_goes_on(
    most: int, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on at a whole block: who gives less than one has no more."""
    content = random.Random(7).randbytes(SIZE)
    again = bytearray(SIZE)
    preadv = os.preadv

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(fd, [buffers[0][:most]], offset)

    def sink(offset: int, data: memoryview) -> None:
        again[offset : offset + len(data)] = data

    flags = os.O_RDWR | os.O_CREAT
    with memfd.create("m") as source, files.open_direct(tmp_path / "f", flags) as stored:
        os.pwrite(source.fileno(), content, 0)
        jobs = chunks.cut(source.fileno(), [(0, SIZE)])
        made = [*chunks.Writer(stored.fileno(), 0).write(jobs)]
        monkeypatch.setattr(os, "preadv", short)
        if goes_on:
            chunks.pour(stored.fileno(), made, SIZE, sink)
            assert again == content
        else:
            files.leave_direct(stored.fileno())
            with pytest.raises(ManifestInvalid, match="damaged"):
                chunks.pour(stored.fileno(), made, SIZE, sink)
