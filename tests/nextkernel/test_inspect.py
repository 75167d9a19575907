from __future__ import annotations

import gzip
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdbox.errors import KernelImageInvalid
from fdbox.linux import memfd
from fdbox.linux.fd import open_path
from fdbox.nextkernel.abi import Abi
from fdbox.nextkernel.inspect import KernelImage, inspect
from tests.nextkernel import images

if TYPE_CHECKING:
    from pathlib import Path

KERNEL = images.kernel()
PACKED = gzip.compress(KERNEL, mtime=0)
BZIMAGE = images.bzimage(PACKED, size=len(KERNEL))
ARM64 = images.arm64(images.kernel(head=b""))
IMAGES = {
    "bzImage": BZIMAGE,
    "Image": ARM64,
    "Image.gz": gzip.compress(ARM64, mtime=0),
    "EFI zboot": images.zboot(gzip.compress(ARM64, mtime=0)),
    "UKI": images.uki(BZIMAGE),
}
OURS = Abi(("kho-v4",), ("luo-v5",), ("memfd-v2",))


def look(data: bytes, **options: Path) -> KernelImage:
    """Return what is said of an image without a path."""
    with memfd.create("kernel") as file:
        os.pwrite(file.fileno(), data, 0)
        return inspect(file.fileno(), **options)


@pytest.mark.parametrize("name", images.METHODS)
def test_bzimage_packed_by_every_method(name: str) -> None:
    found = look(images.bzimage(images.METHODS[name](KERNEL), size=len(KERNEL)))
    assert (found.format, found.machine, found.compression) == ("bzImage", "x86_64", name)
    assert (found.release, found.banner) == (images.RELEASE, images.BANNER)
    assert found.abi == OURS
    assert found.configuration is not None
    assert found.configuration.source == "the image"
    assert found.configuration.has("LIVEUPDATE_MEMFD")
    assert not found.configuration.has("KEXEC_SIG")
    assert (found.signed, found.obstacles) == (False, ())
    assert (found.memory, found.preferred_address) == (0xE55000, 0x1000000)


def test_bzimage_that_is_not_packed() -> None:
    found = look(images.bzimage(KERNEL, size=len(KERNEL)))
    assert (found.compression, found.abi) == (None, OURS)


@pytest.mark.parametrize(
    ("name", "format_", "machine", "compression", "obstacle"),
    [
        ("Image", "Image", "aarch64", None, ""),
        ("Image.gz", "Image", "aarch64", "gzip", "packed as a whole: unpack it first (gzip)"),
        ("EFI zboot", "EFI zboot", "aarch64", "gzip", "EFI zboot image"),
        ("UKI", "UKI", "x86_64", "gzip", "its section .linux"),
    ],
)
def test_other_formats(
    name: str, format_: str, machine: str, compression: str | None, obstacle: str
) -> None:
    found = look(IMAGES[name])
    assert (found.format, found.machine, found.compression) == (format_, machine, compression)
    assert (found.release, found.abi) == (images.RELEASE, OURS)
    assert obstacle in " ".join(found.obstacles)
    assert bool(found.obstacles) == bool(obstacle)
    assert found.memory == (0xE55000 if machine == "x86_64" else 0x2000000)


def test_zboot_of_another_machine() -> None:
    packed = gzip.compress(images.kernel(head=b"riscv"))
    assert look(images.zboot(packed, machine=0x5064)).machine == "riscv64"
    assert look(images.zboot(packed, machine=0x1234)).machine == "unknown"


def test_signed() -> None:
    assert look(images.bzimage(PACKED, signed=True)).signed
    assert not look(images.bzimage(PACKED)).signed


WHOLE = {
    **{name: image for name, image in IMAGES.items() if name != "Image.gz"},
    "signed": images.bzimage(PACKED, size=len(KERNEL), signed=True),
    "bzImage, no EFI program": images.bzimage(PACKED, size=len(KERNEL), efi=False),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("missing", [1, 20, 2000, 20000])
def test_an_image_cut_short_is_no_kernel(name: str, missing: int) -> None:
    image = WHOLE[name]
    assert look(image).release == images.RELEASE
    with pytest.raises(KernelImageInvalid, match="cut short") as raised:
        look(image[:-missing])
    assert raised.value.remedy == "copy or download it again"


@pytest.mark.parametrize("left", [64, 0x100, 0x1000, 0x8000])
def test_what_is_left_of_an_arm64_image(left: int) -> None:
    with pytest.raises(KernelImageInvalid, match="cut short"):
        look(ARM64[:left])
    assert look(images.arm64(KERNEL, efi=False)).release == images.RELEASE
    with pytest.raises(KernelImageInvalid, match="there is no Linux in the image"):
        look(images.arm64(KERNEL, efi=False)[:left])


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"xload": 0x3D}, "cannot be loaded above 4 GiB (built without CONFIG_RELOCATABLE)"),
        ({"xload": 0x3E}, "not a 64-bit kernel"),
        ({"version": 0x020B}, "boot protocol is older than 2.12"),
    ],
)
def test_what_kexec_will_not_load(changed: dict[str, int], what: str) -> None:
    (found,) = look(images.bzimage(PACKED, **changed)).obstacles  # type: ignore[arg-type]
    assert what in found


def test_what_the_boot_sector_lacks() -> None:
    image = bytearray(BZIMAGE)
    image[0x1FE] = image[0x211] = 0
    assert look(bytes(image)).obstacles == ("it has no x86 boot sector", "it is a zImage")


def test_four_setup_sectors_are_written_as_none() -> None:
    image = bytearray(BZIMAGE)
    image[0x1F1] = 0
    image[2048:2048] = bytes(512)
    assert look(bytes(image)).release == images.RELEASE


def test_the_place_of_the_payload_is_checked() -> None:
    for offset, length in [(0xFFFFFFF0, 100), (0x100, 0xFFFFFFFF), (0x100, 0), (len(BZIMAGE), 1)]:
        image = bytearray(BZIMAGE)
        struct.pack_into("<II", image, 0x248, offset, length)
        with pytest.raises(KernelImageInvalid, match="cut short"):
            look(bytes(image))
    with pytest.raises(KernelImageInvalid, match="older than boot protocol"):
        look(images.bzimage(PACKED, version=0x0207))


NO_KERNELS = {
    "nothing": b"",
    "two bytes": b"MZ",
    "a program of DOS": b"MZ" + bytes(0x100),
    "a program of Linux": b"\x7fELF" + bytes(1000),
    "a script": b"#!/bin/sh\n" * 100,
    "the beginning of one": BZIMAGE[:0x220],
    "text in gzip": gzip.compress(b"text", mtime=0),
    "a UKI in a UKI": images.uki(images.uki(BZIMAGE)),
    "no version": images.bzimage(gzip.compress(b"\x7fELF" + bytes(10000))),
    "a version that is a path": images.bzimage(
        gzip.compress(images.kernel(banner="Linux version a/b (x) #1"))
    ),
    "packed by nothing": images.bzimage(b"packed by nothing"),
}


@pytest.mark.parametrize("data", NO_KERNELS.values(), ids=NO_KERNELS)
def test_what_is_no_kernel(data: bytes) -> None:
    with pytest.raises(KernelImageInvalid) as raised:
        look(data)
    assert raised.value.message.startswith("/memfd:kernel (deleted): ")
    assert raised.value.remedy


def test_what_is_no_file(tmp_path: Path) -> None:
    with (
        open_path(tmp_path, os.O_RDONLY) as folder,
        pytest.raises(KernelImageInvalid, match="regular file"),
    ):
        inspect(folder.fileno())
    with (
        memfd.create("large", 1 << 31) as large,
        pytest.raises(KernelImageInvalid, match="2147483648"),
    ):
        inspect(large.fileno())


def test_the_position_is_not_moved(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(BZIMAGE)
    with open_path(path, os.O_RDONLY) as file:
        os.lseek(file.fileno(), 7, os.SEEK_SET)
        assert inspect(file.fileno()).path == str(path)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 7


# --- hostile ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
@given(data=st.data())
def test_headers_that_lie_are_an_error_or_another_kernel(name: str, data: st.DataObject) -> None:
    image = bytearray(IMAGES[name])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(image), 0x600) - 4))
        image[at : at + 4] = data.draw(st.sampled_from(NUMBERS) | st.binary(min_size=4, max_size=4))
    check(bytes(image))


NUMBERS = [n.to_bytes(4, "little") for n in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0)]


@pytest.mark.parametrize("name", IMAGES)
@given(data=st.data())
def test_cut_anywhere(name: str, data: st.DataObject) -> None:
    check(IMAGES[name][: data.draw(st.integers(0, len(IMAGES[name])))])


@given(head=st.sampled_from(sorted(IMAGES)), tail=st.binary(max_size=3000))
def test_a_header_and_noise(head: str, tail: bytes) -> None:
    check(IMAGES[head][:0x208] + tail)


def check(data: bytes) -> None:
    """Check that an image is read, or refused with a reason."""
    reason = None
    try:
        release = look(data).release
    except KernelImageInvalid as error:
        release, reason = "", error.message
    assert release or reason


# --- the configuration ----------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Return an image without a configuration inside, in /boot of a root of its own."""
    path = tmp_path / "boot/vmlinuz-x"
    path.parent.mkdir()
    path.write_bytes(images.bzimage(gzip.compress(images.kernel(config=""))))
    return path


def source(image: Path, config: Path | None = None) -> str | None:
    """Return where the configuration was found."""
    with open_path(image, os.O_RDONLY) as file:
        found = inspect(file.fileno(), config, root=image.parents[1]).configuration
    return None if found is None else found.source


@pytest.mark.parametrize(
    "where",
    [
        "boot/config-{}",
        "boot/config",
        "lib/modules/{}/config",
        "usr/lib/modules/{}/config",
    ],
)
def test_the_configuration_beside_it(bare: Path, where: str) -> None:
    assert source(bare) is None
    path = bare.parents[1] / where.format(images.RELEASE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(images.CONFIG)
    assert source(bare) == str(path)


def test_a_configuration_of_another_build_is_not_taken(bare: Path) -> None:
    path = bare.with_name(f"config-{images.RELEASE}")
    path.write_text(images.CONFIG.replace("12.2.0", "14.2.0"))
    assert source(bare) is None
    assert source(bare, path) == str(path), "given by name, it is"


def test_a_configuration_that_is_none(bare: Path, tmp_path: Path) -> None:
    path = bare.with_name(f"config-{images.RELEASE}")
    path.write_bytes(b"\x1f\x8b" + bytes(20))
    assert source(bare) is None
    with pytest.raises(KernelImageInvalid, match="is no kernel configuration"):
        source(bare, path)
    with pytest.raises(FileNotFoundError):
        source(bare, tmp_path / "nowhere")
    path.write_bytes(gzip.compress(images.CONFIG.encode()))
    assert source(bare, path) == str(path)


def test_what_begins_like_a_configuration_inside() -> None:
    inner = images.kernel(config="")
    assert look(images.bzimage(gzip.compress(b"IKCFG_ST\0" + inner, mtime=0))).configuration is None
    mark = b"IKCFG_ST\0IKCFG_ST" + gzip.compress(images.CONFIG.encode())
    found = look(images.bzimage(gzip.compress(mark + inner, mtime=0))).configuration
    assert found is not None
    assert found.has("LIVEUPDATE")
