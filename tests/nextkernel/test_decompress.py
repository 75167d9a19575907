from __future__ import annotations

import bz2
import lzma
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fdbox.errors import KernelImageInvalid
from fdbox.nextkernel.decompress import compression, decompress
from tests.nextkernel import images
from tests.vm import debian

if TYPE_CHECKING:
    from pathlib import Path

KERNEL = images.kernel()
PACKED = {name: pack(KERNEL) for name, pack in images.METHODS.items()}
SIZE = struct.pack("<I", len(KERNEL))
TOOLS = {"lz4": "lz4", "lzop": "lzop", "xz": "xz-utils", "zstd": "zstd", "bzip2": "bzip2"}
#: what scripts/Makefile.lib runs
COMMANDS = {
    "gzip": ["gzip", "-n", "-f", "-9"],
    "xz": ["xz", "--check=crc32", "--threads=1", "--x86", "--lzma2=dict=128MiB", "-c"],
    "zstd": ["zstd", "-22", "--ultra", "-c"],
    "lz4": ["lz4", "-l", "-9", "-", "-"],
    "lzo": ["lzop", "-9"],
    "lzma": ["lzma", "-9"],
    "bzip2": ["bzip2", "-9"],
}


def tool(name: str, data: bytes) -> bytes:
    """Return `data` packed by the very program that builds kernels, with the size that an x86 kernel has behind it."""
    debian.ensure_programs(TOOLS)
    done = subprocess.run(COMMANDS[name], input=data, capture_output=True, check=True)
    return done.stdout if name == "gzip" else done.stdout + struct.pack("<I", len(data))


@pytest.mark.parametrize("name", PACKED)
def test_every_method(name: str) -> None:
    assert compression(PACKED[name]) == name
    assert decompress(PACKED[name]) == KERNEL


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("behind", [SIZE, bytes(4), b"\xff" * 100])
def test_what_is_behind_the_end_is_left_alone(name: str, behind: bytes) -> None:
    if name == "lz4" and behind != SIZE:  # it has no end of its own
        with pytest.raises(KernelImageInvalid, match="lz4"):
            decompress(PACKED[name] + behind)
    else:
        assert decompress(PACKED[name] + behind) == KERNEL


@pytest.mark.root
@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_kernels_own_programs_pack(name: str) -> None:
    data = KERNEL * 210  # 9 MB: several blocks of lz4, and more than one window
    packed = tool(name, data)
    assert compression(packed) == name
    assert decompress(packed) == data


@pytest.mark.parametrize("name", PACKED)
def test_the_limit_is_kept(name: str) -> None:
    assert decompress(PACKED[name], limit=len(KERNEL)) == KERNEL
    with pytest.raises(KernelImageInvalid, match=f"{name} payload unpacks to more than"):
        decompress(PACKED[name], limit=len(KERNEL) - 1)


@pytest.mark.parametrize("name", PACKED)
def test_a_bomb_is_cut_off(name: str) -> None:
    bomb = images.METHODS[name](bytes(64 << 20))
    assert len(bomb) < 1 << 20
    with pytest.raises(KernelImageInvalid, match="unpacks to more than 1048576 bytes"):
        decompress(bomb, limit=1 << 20)


@pytest.mark.parametrize("name", PACKED)
@given(data=st.data())
def test_cut_short_anywhere(name: str, data: st.DataObject) -> None:
    whole = PACKED[name]
    with pytest.raises(KernelImageInvalid):
        decompress(whole[: data.draw(st.integers(0, len(whole) - 20))])


@pytest.mark.parametrize("name", PACKED)
@given(data=st.data())
def test_damage_is_an_error_or_other_bytes(name: str, data: st.DataObject) -> None:
    damaged = bytearray(PACKED[name])
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, min(len(damaged), 4096) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    out, reason = b"", ""
    try:
        out = decompress(bytes(damaged), limit=1 << 24)
    except KernelImageInvalid as error:
        reason = error.message
    assert len(out) <= 1 << 24
    assert bool(out) != bool(reason)


@pytest.mark.parametrize("flags", [0, 0x1, 0x3, 0x100, 0x303, 0x841])
def test_lzop_with_all_its_fields(flags: int) -> None:
    assert decompress(images.lzop(KERNEL, flags, name=b"vmlinux.bin")) == KERNEL


def test_lzop_stores_what_does_not_become_smaller() -> None:
    noise = lzma.compress(KERNEL)[:30000]
    assert decompress(images.lzop(noise)) == noise


def test_lzop_that_lies() -> None:
    packed = bytearray(images.lzop(KERNEL))
    packed[9:11] = b"\x09\x30"
    with pytest.raises(KernelImageInvalid, match="too old"):
        decompress(bytes(packed))
    block = 9 + 12 + 12 + 1 + 4
    larger = images.lzop(KERNEL)[:block] + struct.pack(">II", 1 << 30, 100)
    with pytest.raises(KernelImageInvalid, match="a block of 100 for 1073741824 bytes"):
        decompress(larger)
    whole = bytearray(images.lzop(KERNEL[:1000] + bytes(1000)))
    struct.pack_into(">I", whole, block, 2001)
    with pytest.raises(KernelImageInvalid, match="a block of 2001 bytes has 2000"):
        decompress(bytes(whole))


def test_lz4_frames_one_behind_the_other() -> None:
    assert decompress(PACKED["lz4"] + PACKED["lz4"]) == KERNEL * 2


@pytest.mark.parametrize(
    "packed",
    [
        *(pack(b"") for pack in images.METHODS.values()),
        PACKED["lz4"][:4],
        PACKED["lz4"][:4] * 2,
        PACKED["lz4"][:4] + bytes(4),
    ],
)
def test_nothing(packed: bytes) -> None:
    with pytest.raises(KernelImageInvalid, match="unpacks to nothing"):
        decompress(packed)


def test_lzma_of_a_known_size(tmp_path: Path) -> None:
    """`lzma FILE` writes the size at the beginning, `lzma <FILE` a mark at the end."""
    packed = bytearray(lzma.compress(KERNEL, lzma.FORMAT_ALONE))
    struct.pack_into("<Q", packed, 5, len(KERNEL))
    assert decompress(bytes(packed) + SIZE) == KERNEL


def test_a_window_too_large_is_refused() -> None:
    huge = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    stream = zstandard.ZstdCompressor(compression_params=huge).compressobj()
    packed = stream.compress(KERNEL) + stream.flush()
    with pytest.raises(KernelImageInvalid, match="zstd payload is damaged"):
        decompress(packed)


def test_what_is_no_known_method() -> None:
    assert compression(b"\x7fELF") is None
    with pytest.raises(KernelImageInvalid, match=r"no known method \(it begins with 7f454c46\)"):
        decompress(b"\x7fELF")
    with pytest.raises(KernelImageInvalid, match="no known method"):
        decompress(b"")


def test_what_looks_like_bzip2() -> None:
    with pytest.raises(KernelImageInvalid, match="bzip2 payload is damaged"):
        decompress(b"BZh9" + bytes(100))
    with pytest.raises(KernelImageInvalid, match="bzip2 payload ends too early"):
        decompress(bz2.compress(KERNEL)[:50])
