"""Kernel images as they lie on disk: which format, what kexec_file_load(2) will say to it, and the kernel inside.

- *bzImage*: the setup header of x86 (Documentation/arch/x86/boot.rst), the packed kernel behind it.
- *arm64 Image*: the kernel as it is, behind 64 bytes of header (arch/arm64/include/asm/image.h); often in gzip.
- *EFI zboot*: a PE program that has a packed Image in it (drivers/firmware/efi/libstub/zboot-header.S).
- *UKI*: a PE program with one of these as its section `.linux` (the UAPI group's Unified Kernel Image).

Numbers in an image are not believed: every read checks where it ends.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fdbox.errors import KernelImageInvalid
from fdbox.nextkernel.decompress import compression, decompress

if TYPE_CHECKING:
    from collections.abc import Iterator

# struct setup_header, arch/x86/include/uapi/asm/bootparam.h: offsets in the file
_SETUP_SECTS = 0x1F1
_SYSSIZE = 0x1F4
_BOOT_FLAG = 0x1FE
_HEADER = 0x202
_VERSION = 0x206
_LOADFLAGS = 0x211
_XLOADFLAGS = 0x236
_PAYLOAD_OFFSET = 0x248
_PAYLOAD_LENGTH = 0x24C
_PREF_ADDRESS = 0x258
_INIT_SIZE = 0x260
_HEADER_END = 0x268

_BOOT_MAGIC = 0xAA55
_LOADED_HIGH = 0x1
_XLF_KERNEL_64 = 0x1
_XLF_CAN_BE_LOADED_ABOVE_4G = 0x2
_OLDEST_WITH_PAYLOAD = 0x0208
_OLDEST_FOR_KEXEC = 0x020C
_SECTOR, _PARAGRAPH = 512, 16
_SETUP_SECTS_IF_ZERO = 4

# struct arm64_image_header
_ARM64_IMAGE_SIZE = 0x10
_ARM64_MAGIC = (0x38, b"ARM\x64")

# the zboot header
_ZBOOT_MAGIC = (0x4, b"zimg")
_ZBOOT_PAYLOAD = 0x8

# PE: the COFF header behind "PE\0\0", then the optional header, then the sections
_PE_OFFSET = 0x3C
_MACHINES = {0x8664: "x86_64", 0x014C: "i386", 0xAA64: "aarch64", 0x5064: "riscv64"}
_OPTIONAL_HEADER = 24
#: where the data directories begin, by the optional header's magic (PE32, PE32+); their number stands right before
_DIRECTORIES = {0x10B: 96, 0x20B: 112}
_CERTIFICATES = 4  # IMAGE_DIRECTORY_ENTRY_SECURITY
_SECTION = struct.Struct(
    "<8sIIII16x"
)  # name, virtual size, address, size in the file, offset in the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An image, and the kernel taken out of it."""

    format: str  # "bzImage", "Image", "EFI zboot" or "UKI"
    machine: str  # as uname(2) says it
    compression: str | None  # None: not packed
    kernel: bytes
    signed: bool  # has a PE certificate table; whose it is, only the kernel can say
    obstacles: tuple[str, ...]  # why kexec_file_load(2) will not take it
    memory: int  # bytes in one piece that the kernel needs while it starts
    preferred_address: int  # physical; 0: none


def open_image(data: bytes) -> Opened:
    """Return what is in an image; KernelImageInvalid if that is no kernel, or damaged."""
    if _has(data, _HEADER, b"HdrS"):
        return _bzimage(data)
    if _has(data, *_ARM64_MAGIC):
        return _arm64(data)
    if _has(data, *_ZBOOT_MAGIC):
        return _zboot(data)
    if linux := _section(data, b".linux"):
        _check_whole(data)
        return _inside(
            data=linux, name="UKI", why="it is a UKI: take the kernel out of its section .linux"
        )
    if compression(data) is not None:
        return _packed_image(data)
    raise KernelImageInvalid("this is no kernel image of a format known here")


def _has(data: bytes, at: int, magic: bytes) -> bool:
    return data[at : at + len(magic)] == magic


def _number(data: bytes, at: int, size: int) -> int:
    found = data[at : at + size]
    if at < 0 or len(found) != size:
        raise _cut_short("it ends in its header")
    return int.from_bytes(found, "little")


def _piece(data: bytes, at: int, size: int) -> bytes:
    if size == 0 or at + size > len(data):
        raise _cut_short(f"its kernel should be bytes {at} to {at + size} of {len(data)}")
    return data[at : at + size]


def _cut_short(why: str) -> KernelImageInvalid:
    return KernelImageInvalid(
        f"the kernel image is cut short: {why}", remedy="copy or download it again"
    )


def _unpacked(packed: bytes) -> tuple[str | None, bytes]:
    name = compression(packed)
    if name is None and packed.startswith(b"\x7fELF"):  # CONFIG_KERNEL_UNCOMPRESSED
        return None, packed
    return name, decompress(packed)


def _bzimage(data: bytes) -> Opened:
    if len(data) < _HEADER_END:
        raise _cut_short("it ends in its header")
    if _number(data, _VERSION, 2) < _OLDEST_WITH_PAYLOAD:
        raise KernelImageInvalid(
            "the kernel image is older than boot protocol 2.08, and does not say where its kernel is"
        )
    sectors = (data[_SETUP_SECTS] or _SETUP_SECTS_IF_ZERO) + 1
    setup = sectors * _SECTOR
    if not _check_whole(data):
        _check_end(data, setup + _number(data, _SYSSIZE, 4) * _PARAGRAPH)
    begin = setup + _number(data, _PAYLOAD_OFFSET, 4)
    name, kernel = _unpacked(_piece(data, begin, _number(data, _PAYLOAD_LENGTH, 4)))
    return Opened(
        format="bzImage",
        machine="x86_64" if _number(data, _XLOADFLAGS, 2) & _XLF_KERNEL_64 else "i386",
        compression=name,
        kernel=kernel,
        signed=_signed(data),
        obstacles=tuple(_bzimage_obstacles(data)),
        memory=_number(data, _INIT_SIZE, 4),
        preferred_address=_number(data, _PREF_ADDRESS, 8),
    )


def _bzimage_obstacles(data: bytes) -> list[str]:
    """Return what bzImage64_probe (arch/x86/kernel/kexec-bzimage64.c) would find."""
    version, flags = _number(data, _VERSION, 2), _number(data, _XLOADFLAGS, 2)
    conditions = {
        "it has no x86 boot sector": _number(data, _BOOT_FLAG, 2) == _BOOT_MAGIC,
        "its boot protocol is older than 2.12": version >= _OLDEST_FOR_KEXEC,
        "it is a zImage": bool(data[_LOADFLAGS] & _LOADED_HIGH),
        "it is not a 64-bit kernel": bool(flags & _XLF_KERNEL_64),
        "it cannot be loaded above 4 GiB (built without CONFIG_RELOCATABLE)": bool(
            flags & _XLF_CAN_BE_LOADED_ABOVE_4G
        ),
    }
    return [what for what, met in conditions.items() if not met]


def _arm64(data: bytes) -> Opened:
    _check_whole(data)
    return Opened(
        format="Image",
        machine="aarch64",
        compression=None,
        kernel=data,
        signed=_signed(data),
        obstacles=(),
        memory=_number(data, _ARM64_IMAGE_SIZE, 8),
        preferred_address=0,
    )


def _packed_image(data: bytes) -> Opened:
    name, plain = compression(data), decompress(data)
    if not _has(plain, *_ARM64_MAGIC):
        raise KernelImageInvalid(f"this is no kernel image: what is packed in it by {name} is none")
    why = f"it is packed as a whole: unpack it first ({name})"
    return replace(_arm64(plain), compression=name, obstacles=(why,))


def _zboot(data: bytes) -> Opened:
    _check_whole(data)
    packed = _piece(data, _number(data, _ZBOOT_PAYLOAD, 4), _number(data, _ZBOOT_PAYLOAD + 4, 4))
    name, kernel = compression(packed), decompress(packed)
    pe = _pe_header(data)
    machine = None if pe is None else _MACHINES.get(_number(data, pe + 4, 2))
    image = _has(kernel, *_ARM64_MAGIC)
    return Opened(
        format="EFI zboot",
        machine="aarch64" if image else machine or "unknown",
        compression=name,
        kernel=kernel,
        signed=_signed(data),
        obstacles=("it is an EFI zboot image: take the Image out of it",),
        memory=_number(kernel, _ARM64_IMAGE_SIZE, 8) if image else len(kernel),
        preferred_address=0,
    )


def _inside(data: bytes, name: str, why: str) -> Opened:
    if _section(data, b".linux"):
        raise KernelImageInvalid("this is no kernel image: a UKI in a UKI")
    found = open_image(data)
    return replace(found, format=name, obstacles=(why, *found.obstacles))


# --- PE --------------------------------------------------------------------------------------------------------------


def _pe_header(data: bytes) -> int | None:
    """Return where the PE signature stands; None if this is no PE file."""
    if not data.startswith(b"MZ"):
        return None
    at = _number(data, _PE_OFFSET, 4)
    return at if _has(data, at, b"PE\0\0") else None


def _check_whole(data: bytes) -> bool:
    """Return whether this is a PE file; KernelImageInvalid if what its headers name lies behind its end.

    The kernel takes an image cut short as it is, and what is missing is missed in the next one.
    """
    pe = _pe_header(data)
    if pe is None:
        if data.startswith(b"MZ"):
            _check_end(data, _number(data, _PE_OFFSET, 4) + 4)
        return False
    for _, begin, size in _sections(data, pe):
        _check_end(data, begin + size if size else 0)
    begin, size = _certificates(data, pe)
    _check_end(data, begin + size if size else 0)
    return True


def _check_end(data: bytes, end: int) -> None:
    if end > len(data):
        raise _cut_short(f"it should have {end} bytes, and has {len(data)}")


def _signed(data: bytes) -> bool:
    """Return whether the PE certificate table has something."""
    pe = _pe_header(data)
    return pe is not None and _certificates(data, pe)[1] > 0


def _certificates(data: bytes, pe: int) -> tuple[int, int]:
    """Return where the PE certificate table begins, and its size; 0 if there is none."""
    optional = pe + _OPTIONAL_HEADER
    first = _DIRECTORIES.get(_number(data, optional, 2))
    if first is None or _number(data, optional + first - 4, 4) <= _CERTIFICATES:
        return 0, 0
    entry = optional + first + _CERTIFICATES * 8
    return _number(data, entry, 4), _number(data, entry + 4, 4)


def _section(data: bytes, wanted: bytes) -> bytes | None:
    """Return a PE file's section of that name; None if it has none."""
    pe = _pe_header(data)
    found = () if pe is None else _sections(data, pe)
    return next((_piece(data, begin, size) for name, begin, size in found if name == wanted), None)


def _sections(data: bytes, pe: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each section, where it begins, and how much of it is in the file."""
    table = pe + _OPTIONAL_HEADER + _number(data, pe + 20, 2)
    for index in range(_number(data, pe + 6, 2)):
        at = table + index * _SECTION.size
        if at + _SECTION.size > len(data):
            raise _cut_short("it ends in its header")
        name, virtual, _, size, begin = _SECTION.unpack_from(data, at)
        yield name.rstrip(b"\0"), begin, min(virtual, size)
