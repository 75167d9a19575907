"""Kernel images that are built here: small ones with every field where the real ones have it, and real ones packed anew."""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import struct
import zlib
from typing import TYPE_CHECKING

import lz4.block
import zstandard
from lzallright import LZOCompressor

if TYPE_CHECKING:
    from collections.abc import Callable

RELEASE = "7.3.4-test"
BANNER = f"Linux version {RELEASE} (root@vm) (gcc (Debian 12.2.0) 12.2.0, GNU ld 2.40) #1 SMP PREEMPT Wed Nov 25"
CONFIG = """\
#
# Automatically generated file; DO NOT EDIT.
#
CONFIG_CC_VERSION_TEXT="gcc (Debian 12.2.0) 12.2.0"
CONFIG_KEXEC_HANDOVER=y
CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y
CONFIG_LIVEUPDATE=y
CONFIG_LIVEUPDATE_MEMFD=y
# CONFIG_KEXEC_SIG is not set
"""
STRINGS = ("kho-v4", "luo-v5", "memfd-v2")
MAGIC_ARM64 = b"ARM\x64"


def kernel(
    *,
    strings: tuple[str, ...] = STRINGS,
    registered: tuple[str, ...] = (),
    config: str = CONFIG,
    banner: str = BANNER,
    head: bytes = b"\x7fELF",
) -> bytes:
    """Return an unpacked kernel with these strings, as they stand in a real one (7.3.4)."""
    code = b"".join(zlib.crc32(n.to_bytes(4, "big")).to_bytes(4, "big") for n in range(9000))
    parts = [head, code, b"\0Linux version 7.3.4 (root@vm) (gcc) # SMP\n\0"]
    if config:
        parts.append(b"IKCFG_ST" + gzip.compress(config.encode(), mtime=0) + b"IKCFG_ED")
    parts += [
        b"\0",
        banner.encode(),
        b"\n\0",
        b"\x014KHO: LUO is incompatible with 'x-v9'\n\0kho-v\0",
    ]
    parts += [b"\0" + text.encode() + b"\0" for text in strings if not text.startswith("memfd")]
    parts += [b"reserve-mem-v1\0", b"\0" * 64]
    parts += [
        handler(text) for text in (*(s for s in strings if s.startswith("memfd")), *registered)
    ]
    return b"".join(parts) + code[:5000]


def handler(compatible: str) -> bytes:
    """Return a `struct liveupdate_file_handler`: a pointer, the string, two lists."""
    pointer = 0xFFFFFFFF82AB4500
    return struct.pack("<Q48s4Q", pointer, compatible.encode(), *[pointer] * 4)


# --- packed ----------------------------------------------------------------------------------------------------------


def _xz(data: bytes) -> bytes:
    """Pack as scripts/xz_wrap.sh does."""
    filters = [
        {"id": lzma.FILTER_X86},
        {"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 128 << 20},
    ]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


def _lz4(data: bytes) -> bytes:
    """Pack as `lz4 -l` does: blocks of 8 MiB with their packed size before them."""
    blocks = (data[at : at + (8 << 20)] for at in range(0, len(data), 8 << 20))
    packed = [lz4.block.compress(block, store_size=False) for block in blocks]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(one)) + one for one in packed)


def lzop(data: bytes, flags: int = 0x1, name: bytes = b"") -> bytes:
    """Pack as lzop does; `flags` say which checksums and fields there are."""
    head = struct.pack(">HHHBBI", 0x1040, 0x20A0, 0x0940, 3, 9, flags)
    head += struct.pack(">I", 1) if flags & 0x800 else b""
    head += struct.pack(">III", 0o100644, 0, 0) + bytes([len(name)]) + name
    out = [b"\x89LZO\0\r\n\x1a\n", head, struct.pack(">I", zlib.adler32(head))]
    if flags & 0x40:
        out.append(struct.pack(">I5sI", 5, b"extra", 0))
    for at in range(0, len(data), 256 << 10):
        block = data[at : at + (256 << 10)]
        packed = LZOCompressor().compress(block)
        packed = min(packed, block, key=len)
        out.append(struct.pack(">II", len(block), len(packed)))
        sums = [bit for bit in (0x1, 0x100) if flags & bit]
        sums += [bit for bit in (0x2, 0x200) if flags & bit and len(packed) < len(block)]
        out += [b"sums" for _ in sums]
        out.append(packed)
    return b"".join(out) + bytes(4)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    ).compress(data)


METHODS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": functools.partial(gzip.compress, mtime=0),
    "xz": _xz,
    "zstd": _zstd,
    "lz4": _lz4,
    "lzo": lzop,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
}


# --- images ----------------------------------------------------------------------------------------------------------

SETUP_SECTORS = 3


def bzimage(
    payload: bytes,
    *,
    size: int = 0,
    xload: int = 0x3F,
    version: int = 0x020F,
    signed: bool = False,
    efi: bool = True,
) -> bytes:
    """Return an x86 image with this payload; `size` is what stands behind it; `efi`: it is a PE program, too."""
    payload += struct.pack("<I", size)
    setup = bytearray((SETUP_SECTORS + 1) * 512)
    setup[0x1F1] = SETUP_SECTORS
    struct.pack_into("<H4sH", setup, 0x1FE, 0xAA55, b"\0\0\0\0", 0)
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    setup[0x211] = 1
    struct.pack_into("<H", setup, 0x236, xload)
    struct.pack_into("<II", setup, 0x248, 0x100, len(payload))
    struct.pack_into("<QI", setup, 0x258, 0x1000000, 0xE55000)
    code = (bytes(0x100) + payload).ljust((0x100 + len(payload) + 15) // 16 * 16, b"\0")
    struct.pack_into("<I", setup, 0x1F4, len(code) // 16)
    if not efi:
        return bytes(setup) + code
    certificates = b"signature" if signed else b""
    return with_pe(bytes(setup) + code, 0x280, text=len(setup), certificates=certificates)


def repacked(image: bytes, payload: bytes) -> bytes:
    """Return a real bzImage with another payload, to be read: it would not start."""
    setup = (image[0x1F1] + 1) * 512
    begin = setup + struct.unpack_from("<I", image, 0x248)[0]
    out = bytearray(image[:begin]) + payload
    out += bytes(-(len(out) - setup) % 16)
    struct.pack_into("<I", out, 0x1F4, (len(out) - setup) // 16)
    struct.pack_into("<I", out, 0x24C, len(payload))
    _end_sections_in(out)
    return bytes(out)


def _end_sections_in(image: bytearray) -> None:
    """Let no section of a real PE file go beyond its end, and take its certificates away."""
    (pe,) = struct.unpack_from("<I", image, 0x3C)
    if image[pe : pe + 4] != b"PE\0\0":
        return
    count, optional = struct.unpack_from("<H12xH", image, pe + 6)
    for at in range(pe + 24 + optional, pe + 24 + optional + count * 40, 40):
        size, begin = struct.unpack_from("<II", image, at + 16)
        struct.pack_into("<I", image, at + 16, max(0, min(size, len(image) - begin)))
    struct.pack_into("<II", image, pe + 24 + 112 + 4 * 8, 0, 0)


def replaced(image: bytes, payload: bytes) -> bytes:
    """Return a real bzImage that starts with another payload: the code that unpacks it lies behind, and knows its place."""
    begin = image.index(payload_of(image))
    length = len(payload_of(image)) - 4
    assert len(payload) <= length, f"{len(payload) - length} bytes too many"
    return image[:begin] + payload.ljust(length, b"\0") + image[begin + length :]


def payload_of(image: bytes) -> bytes:
    """Return a real bzImage's payload, with the size behind it."""
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (image[0x1F1] + 1) * 512 + offset
    return image[begin : begin + length]


def with_pe(
    data: bytes,
    at: int,
    *,
    text: int = 0,
    certificates: bytes = b"",
    sections: dict[bytes, bytes] | None = None,
    machine: int = 0x8664,
) -> bytes:
    """Return `data` with a PE header written into it at `at`, and sections and certificates behind it.

    `text` is where a section begins that goes to the end of `data`; 0: there is none.
    """
    out = bytearray(data[:text] if text else data)
    sections = {**({b".text": data[text:]} if text else {}), **(sections or {})}
    out[0:2] = b"MZ"
    struct.pack_into("<I", out, 0x3C, at)
    struct.pack_into("<4sHH12xHH", out, at, b"PE\0\0", machine, len(sections), 112 + 16 * 8, 0x22)
    optional = at + 24
    struct.pack_into("<H", out, optional, 0x20B)
    struct.pack_into("<I", out, optional + 108, 16)
    table = optional + 112 + 16 * 8
    for index, (name, content) in enumerate(sections.items()):
        struct.pack_into(
            "<8sIIII", out, table + index * 40, name, len(content), 0x1000, len(content), len(out)
        )
        out += content
    if certificates:
        struct.pack_into("<II", out, optional + 112 + 4 * 8, len(out), len(certificates))
        out += certificates
    return bytes(out)


def arm64(plain: bytes, *, size: int = 0x2000000, efi: bool = True) -> bytes:
    """Return an arm64 Image: a header of 64 bytes, and the kernel; `efi`: it is a PE program, too."""
    start = b"MZ\0\x91" if efi else b"\x1f\x20\x03\xd5"  # the latter does nothing
    head = struct.pack("<4sIQQQ24x4sI", start, 0, 0, size, 0xA, MAGIC_ARM64, 0)
    if not efi:
        return head + plain
    return with_pe(head + bytes(0x1C0) + plain, 0x40, text=0x200, machine=0xAA64)


def zboot(packed: bytes, *, machine: int = 0xAA64) -> bytes:
    """Return an EFI zboot image with a packed Image in it."""
    head = bytearray(0x200)
    struct.pack_into("<4s4sIIII32s", head, 0, b"MZ\0\0", b"zimg", 0x200, len(packed), 0, 0, b"gzip")
    return with_pe(bytes(head) + packed, 0x40, text=len(head), machine=machine)


def uki(image: bytes) -> bytes:
    """Return a UKI with this image."""
    sections = {b".osrel": b"ID=test\n", b".linux": image, b".cmdline": b"quiet"}
    return with_pe(bytes(0x200), 0x40, sections=sections)
