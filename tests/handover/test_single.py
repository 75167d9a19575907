"""One box as one file: what to do about a file that is not as it should be, and what a hostile one can take."""

from __future__ import annotations

import os
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
import xxhash
import zstandard
from tests.fakes.carrier import SECOND, FakeKernel

from fdbox.errors import LateWrite, ManifestInvalid, NoRoom, SameIncarnation
from fdbox.fdt.tree import Node
from fdbox.handover import manifest
from fdbox.handover.carriers import chunks, imagefile, single
from fdbox.kinds import registry
from fdbox.kinds.look import look
from fdbox.linux import memfd
from fdbox.model import BoxKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fdbox.handover.carriers.chunks import Chunk
    from fdbox.linux.fd import OwnedFd
    from fdbox.model import Description
    from fdbox.ports import Parcel

MIB = 1 << 20
BOX = BoxKey(0, "cache")


def described(fd: OwnedFd) -> tuple[int, Description]:
    seen = look(fd.fileno())
    return fd.fileno(), registry.recognise(seen).describe(seen)


def exported(path: Path, content: bytes = b"x" * MIB) -> bytes:
    """Return a file with a box that has one memory."""
    with memfd.create("m", len(content)) as fd, path.open("w+b") as file:
        os.pwrite(fd.fileno(), content, 0)
        single.write(file.fileno(), BOX, {"m": described(fd)}, FakeKernel())
    return path.read_bytes()


def refused(path: Path, kernel: FakeKernel, error: type[Exception]) -> str:
    """Return what is said of a file that makes no box."""
    with path.open("rb") as file, pytest.raises(error) as caught:
        single.read(file.fileno(), 0, kernel)
    return str(caught.value)


def lost(path: Path, kernel: FakeKernel) -> str:
    """Return why the one memory of a file cannot be made."""
    with path.open("rb") as file:
        _, entries, losses = single.read(file.fileno(), 0, kernel)
    assert entries == {}
    (loss,) = losses
    return loss.reason


def test_a_file_of_this_kernel_is_for_another(tmp_path: Path) -> None:
    exported(tmp_path / "f")
    said = refused(tmp_path / "f", FakeKernel(), SameIncarnation)
    assert "on another machine, or after the next boot" in said
    assert "unseal" not in said


def test_what_is_damaged_on_the_way_is_to_be_copied_again(tmp_path: Path) -> None:
    path = tmp_path / "f"
    content = os.urandom(MIB)  # it is not compressed
    raw = exported(path, content)
    at = raw.index(content)
    path.write_bytes(raw[:-100])
    said = [refused(path, FakeKernel(SECOND), ManifestInvalid)]
    path.write_bytes(raw[:at] + bytes(4096) + raw[at + 4096 :])
    said.append(lost(path, FakeKernel(SECOND)))
    for sentence in said:
        assert "copy it again" in sentence
        assert "memory is kept" not in sentence
    path.write_bytes(b"x" * 9000)
    assert "give one that fdbox has written" in refused(path, FakeKernel(SECOND), ManifestInvalid)


def test_who_writes_meanwhile_is_to_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = imagefile.write

    def late(target: int, parcels: Sequence[Parcel]) -> dict[int, tuple[Chunk, ...]]:
        made = write(target, parcels)
        os.pwrite(fd.fileno(), b"y", 0)
        return made

    monkeypatch.setattr(imagefile, "write", late)
    with (
        memfd.create("m", MIB) as fd,
        (tmp_path / "f").open("w+b") as file,
        pytest.raises(LateWrite, match="kill -STOP") as caught,
    ):
        single.write(file.fileno(), BOX, {"m": described(fd)}, FakeKernel())
    assert caught.value.context == {"entry": "m", "kind": "memfd", "box": "cache"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "fdbox", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.root
def test_what_does_not_fit_is_refused_before_it_is_written(small_disk: Path) -> None:
    with memfd.create("m", 2 * MIB) as fd, (small_disk / "f").open("w+b") as file:
        os.pwrite(fd.fileno(), b"x" * 2 * MIB, 0)
        with pytest.raises(NoRoom, match="another file system"):
            single.write(file.fileno(), BOX, {"m": described(fd)}, FakeKernel())
        assert os.fstat(file.fileno()).st_size == 0


# --- what a crafted file can take ------------------------------------------------------------------------------------


def bomb(path: Path, token: int, count: int) -> None:
    """Write a file of some KiB in which a parcel has `count` chunks: all are one, of zeros."""
    chunk = bytes(chunks.SIZE)
    packed = zstandard.ZstdCompressor().compress(chunk)
    root = Node("")
    root.set_text("compatible", imagefile.COMPATIBLE)
    root.set_u32("chunk-size", chunks.SIZE)
    node = root.add("parcel@0")
    node.set_u64("token", token)
    node.set_u64("size", count * chunks.SIZE)
    node.set_u64s("offsets", [4096] * count)
    node.set_u32s("stored", [len(packed)] * count)
    node.set_u32s("codecs", [chunks.ZSTD] * count)
    node.set_data("checksums", xxhash.xxh3_128_digest(chunk) * count)
    table = manifest.pack(root)
    body = packed.ljust(4096, b"\0")
    head = struct.pack("<16sQQ", b"fdbox image v1\n\0", 4096 + len(body), len(table))
    path.write_bytes(head.ljust(4096, b"\0") + body + table)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the memories that are made from now on."""
    made: list[int] = []
    create = memfd.create

    def noted(name: str, size: int = 0) -> OwnedFd:
        made.append(size)
        return create(name, size)

    monkeypatch.setattr(memfd, "create", noted)
    return made


def test_a_crafted_manifest_takes_no_memory_that_is_not_free(
    tmp_path: Path, taken: list[int]
) -> None:
    bomb(tmp_path / "f", manifest.FIRST_TOKEN, 3)
    assert (tmp_path / "f").stat().st_size < 3 * 4096
    said = refused(tmp_path / "f", FakeKernel(SECOND, free=2 * chunks.SIZE), NoRoom)
    assert "import it again" in said
    assert taken == []


def test_a_crafted_manifest_is_no_larger_than_any_is(tmp_path: Path, taken: list[int]) -> None:
    bomb(tmp_path / "f", manifest.FIRST_TOKEN, manifest.MAX_BLOB // chunks.SIZE + 1)
    assert "where a component should be" in refused(
        tmp_path / "f", FakeKernel(SECOND), ManifestInvalid
    )
    assert taken == []


def test_bytes_are_taken_where_there_is_room_for_them(tmp_path: Path) -> None:
    exported(tmp_path / "f")
    said = lost(tmp_path / "f", FakeKernel(SECOND, free=MIB - 1))
    assert "do not fit into memory" in said
