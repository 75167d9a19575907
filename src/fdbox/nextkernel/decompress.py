"""What is packed into a kernel image, unpacked, whichever of the kernel's seven methods packed it (scripts/Makefile.lib).

The libraries do the work. Two containers are the kernel's own choice and have no library: the *legacy* frames of
`lz4 -l`, and the container of lzop. An x86 kernel has four bytes behind its payload, the size of what was packed
(size_append): whatever stands behind the end of a stream is left alone.

All input is taken for hostile: what comes out is bounded, and so is what the methods take to work with.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from typing import TYPE_CHECKING

import lz4.block
import zstandard
from lzallright import LZOCompressor, LZOError

from fdbox.errors import KernelImageInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

#: A kernel with everything built in has a few hundred MiB.
LIMIT = 1 << 30

#: How much is fed at a time: a block of zstd makes 128 KiB of a few bytes.
_ZSTD_STEP = 4 << 10
_ZSTD_WINDOW = 1 << 27  # zstd -22 --ultra, as the kernel is packed
_LZ4_BLOCK = (
    8 << 20
)  # LEGACY_BLOCKSIZE of lz4, LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE of lib/decompress_unlz4.c
_LZO_BLOCK = 256 << 10  # LZO_BLOCK_SIZE of lib/decompress_unlzo.c
_LZ4_MAGIC = b"\x02\x21\x4c\x18"
_LZOP_MAGIC = b"\x89LZO\0\r\n\x1a\n"
_WORD = struct.Struct("<I")


def compression(payload: bytes) -> str | None:
    """Return how a payload is packed, by its first bytes: gzip, xz, zstd, lz4, lzo, lzma, bzip2; None if it is not."""
    return next((name for magic, name in _MAGICS.items() if payload.startswith(magic)), None)


def decompress(payload: bytes, limit: int = LIMIT) -> bytes:
    """Return what a payload unpacks to; bytes behind the end of its stream are ignored.

    Raises:
        KernelImageInvalid: the method is not known, the stream is damaged or cut short, or nothing or more than `limit`
            comes out.
    """
    name = compression(payload)
    if name is None:
        raise KernelImageInvalid(
            f"the kernel in the image is packed by no known method (it begins with {payload[:6].hex()})"
        )
    try:
        out = _METHODS[name](payload, limit)
    except _FOREIGN as error:
        raise KernelImageInvalid(f"the {name} payload is damaged: {error}") from error
    if not out:
        raise KernelImageInvalid(f"the {name} payload unpacks to nothing")
    return out


def _too_large(name: str, limit: int) -> KernelImageInvalid:
    return KernelImageInvalid(f"the {name} payload unpacks to more than {limit} bytes")


def _checked(name: str, out: bytes, limit: int, *, complete: bool) -> bytes:
    if len(out) > limit:
        raise _too_large(name, limit)
    if not complete:
        raise _cut_short(name)
    return out


def _cut_short(name: str) -> KernelImageInvalid:
    return KernelImageInvalid(f"the {name} payload ends too early")


def _gzip(payload: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    out = stream.decompress(payload, limit + 1)
    return _checked("gzip", out, limit, complete=stream.eof)


def _bzip2(payload: bytes, limit: int) -> bytes:
    stream = bz2.BZ2Decompressor()
    out = stream.decompress(payload, limit + 1)
    return _checked("bzip2", out, limit, complete=stream.eof)


def _xz(payload: bytes, limit: int) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LIMIT)
    out = stream.decompress(payload, limit + 1)
    return _checked("xz", out, limit, complete=stream.eof)


def _lzma(payload: bytes, limit: int) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=LIMIT)
    out = stream.decompress(payload, limit + 1)
    return _checked("lzma", out, limit, complete=stream.eof)


def _zstd(payload: bytes, limit: int) -> bytes:
    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    parts: list[bytes] = []
    size = at = 0
    while not stream.eof:
        if at >= len(payload):
            raise _cut_short("zstd")
        parts.append(stream.decompress(payload[at : at + _ZSTD_STEP]))
        at += _ZSTD_STEP
        size += len(parts[-1])
        if size > limit:
            raise _too_large("zstd", limit)
    return b"".join(parts)


def _lz4(payload: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    size, at = 0, 0
    while at < len(payload):
        head = _word(payload, at, "lz4", _WORD)
        at += _WORD.size
        if payload.startswith(_LZ4_MAGIC, at - _WORD.size):
            continue
        if at == len(payload) and head == size:
            break  # the size that an x86 kernel has there: it looks like the head of one more block
        if head > len(payload) - at:
            raise _cut_short("lz4")
        parts.append(lz4.block.decompress(payload[at : at + head], uncompressed_size=_LZ4_BLOCK))
        at += head
        size += len(parts[-1])
        if size > limit:
            raise _too_large("lz4", limit)
    return b"".join(parts)


def _word(payload: bytes, at: int, name: str, layout: struct.Struct) -> int:
    if len(payload) - at < layout.size:
        raise _cut_short(name)
    return int(layout.unpack_from(payload, at)[0])


# The container of lzop, as lib/decompress_unlzo.c reads it: all numbers big-endian.
_LZOP_HEAD = struct.Struct(
    ">HHHBBI"
)  # version, of the library, needed to extract, method, level, flags
_LZOP_LEVEL_SINCE = 0x0940
_LZOP_WORD = struct.Struct(">I")
_F_ADLER32_D, _F_ADLER32_C, _F_EXTRA, _F_CRC32_D, _F_CRC32_C, _F_FILTER = (
    0x1,
    0x2,
    0x40,
    0x100,
    0x200,
    0x800,
)


def _lzo(payload: bytes, limit: int) -> bytes:
    flags, at = _lzop_header(payload)
    for_plain = [flag for flag in (_F_ADLER32_D, _F_CRC32_D) if flags & flag]
    for_packed = [flag for flag in (_F_ADLER32_C, _F_CRC32_C) if flags & flag]
    parts: list[bytes] = []
    size = 0
    while plain := _word(payload, at, "lzo", _LZOP_WORD):
        packed = _word(payload, at + 4, "lzo", _LZOP_WORD)
        if plain > _LZO_BLOCK or packed > plain:
            raise KernelImageInvalid(
                f"the lzo payload is damaged: a block of {packed} for {plain} bytes"
            )
        at += 8 + 4 * len(for_plain) + (4 * len(for_packed) if packed < plain else 0)
        if at + packed > len(payload):
            raise _cut_short("lzo")
        parts.append(_lzo_block(payload[at : at + packed], plain))
        at += packed
        size += plain
        if size > limit:
            raise _too_large("lzo", limit)
    return b"".join(parts)


def _lzop_header(payload: bytes) -> tuple[int, int]:
    """Return the flags, and where the blocks begin."""
    at = len(_LZOP_MAGIC)
    if len(payload) < at + _LZOP_HEAD.size + 4:
        raise _cut_short("lzo")
    version, _, _, _, _, flags = _LZOP_HEAD.unpack_from(payload, at)
    if version < _LZOP_LEVEL_SINCE:
        raise KernelImageInvalid(
            f"the lzo payload is of an lzop too old to be known ({version:#x})"
        )
    at += _LZOP_HEAD.size
    at += 4 * (4 if flags & _F_FILTER else 3)  # filter, mode, two halves of the time
    at += 1 + payload[at : at + 1][0] if at < len(payload) else 0  # the name
    at += 4  # checksum of the header
    if flags & _F_EXTRA:
        at += 8 + _word(payload, at, "lzo", _LZOP_WORD)
    return flags, at


def _lzo_block(packed: bytes, size: int) -> bytes:
    if len(packed) == size:  # it would not become smaller, and is stored as it was
        return packed
    out = LZOCompressor.decompress(packed, size)
    if len(out) != size:
        raise KernelImageInvalid(
            f"the lzo payload is damaged: a block of {size} bytes has {len(out)}"
        )
    return out


_MAGICS = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    _LZ4_MAGIC: "lz4",
    _LZOP_MAGIC: "lzo",
    b"\x5d\0\0": "lzma",
    b"BZh": "bzip2",
}
_METHODS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "xz": _xz,
    "zstd": _zstd,
    "lz4": _lz4,
    "lzo": _lzo,
    "lzma": _lzma,
    "bzip2": _bzip2,
}
#: What the libraries raise for damaged input. bz2 has no error of its own: it raises OSError, or ValueError.
_FOREIGN = (
    zlib.error,
    lzma.LZMAError,
    OSError,
    ValueError,
    EOFError,
    zstandard.ZstdError,
    lz4.block.LZ4BlockError,
    LZOError,
)
