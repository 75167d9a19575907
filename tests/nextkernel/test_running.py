from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fdbox.nextkernel.abi import Abi
from fdbox.nextkernel.kcore import scan_kcore
from fdbox.nextkernel.running import Running, Written, running
from tests.nextkernel import images
from tests.nextkernel.world import World, core

KERNEL = images.kernel(registered=("vfio-pci-v1",))
OTHER = images.kernel(strings=("kho-v5", "luo-v6", "memfd-v3"))
ABI = Abi(("kho-v4",), ("luo-v5",), ("memfd-v2",), ("vfio-pci-v1",))
KHO = "CONFIG_KEXEC_HANDOVER=y"
DEFAULT = "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y"
DEBUGFS = "CONFIG_KEXEC_HANDOVER_DEBUGFS=y"
OUT = "sys/kernel/debug/kho/out"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def written(found: Running) -> Abi | None:
    """Return all formats, if all are known and from one source."""
    every = (found.kho, found.luo, found.memfd, found.others)
    assert len({one.source for one in every}) == 1
    strings = [one.strings for one in every if one.strings is not None]
    return Abi(*strings) if len(strings) == 4 else None


def test_this_machine() -> None:
    found = running()
    assert found.release == os.uname().release
    assert found.release in found.banner
    assert found.machine == os.uname().machine
    assert found.liveupdate == Path("/dev/liveupdate").exists()


def test_from_memory_first(world: World) -> None:
    world.live().kcore(KERNEL).image(OTHER)
    found = running(world.root)
    assert written(found) == ABI
    assert found.kho.source == "/proc/kcore"
    assert (found.liveupdate, found.handover) == (True, True)


def test_from_the_image_of_the_same_build(world: World) -> None:
    path = world.image(KERNEL)
    found = running(world.root)
    assert written(found) == ABI
    assert found.memfd.source == str(path)


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("BOOT_IMAGE=/vmlinuz-mine quiet", "boot/vmlinuz-mine"),
        ("BOOT_IMAGE=(hd0,gpt2)/vmlinuz-mine quiet", "boot/vmlinuz-mine"),
        ("BOOT_IMAGE=/boot/own/linux", "boot/own/linux"),
        ("", f"usr/lib/modules/{images.RELEASE}/vmlinuz"),
        ("", f"efi/token/{images.RELEASE}/linux"),
    ],
)
def test_where_the_image_may_be(world: World, line: str, path: str) -> None:
    world.write("proc/cmdline", line)
    world.image(KERNEL, path)
    assert written(running(world.root)) == ABI


def test_an_image_of_another_build_tells_nothing(world: World) -> None:
    world.image(images.kernel(banner=images.BANNER.replace("#1", "#2")))
    world.write(f"lib/modules/{images.RELEASE}/vmlinuz", b"damaged")
    found = running(world.root)
    assert written(found) is None
    assert found.kho == found.luo == found.memfd == Written(None, "")


def test_what_debugfs_shows(world: World) -> None:
    world.write(f"{OUT}/fdt", b"\xd0\x0d\xfe\xed" + bytes(52) + b"kho-v4\0")
    world.write(f"{OUT}/sub_fdts/LUO", b"luo-v5\0\0" + bytes(24))
    found = running(world.root)
    assert found.kho == Written(("kho-v4",), str(world.root / OUT / "fdt"))
    assert found.luo == Written(("luo-v5",), str(world.root / OUT / "sub_fdts/LUO"))
    assert found.memfd == found.others == Written(None, "")
    assert (found.handover, found.liveupdate) == (True, False)


def test_a_blob_without_a_string_tells_nothing(world: World) -> None:
    world.write(f"{OUT}/fdt", b"")
    assert running(world.root).kho == Written(None, "")


def test_built_without(world: World) -> None:
    world.config("CONFIG_KEXEC=y")
    found = running(world.root)
    assert written(found) == Abi()
    assert found.luo.source == str(world.root / "proc/config.gz")
    assert found.handover is False


@pytest.mark.parametrize(
    ("config", "line", "expected"),
    [
        (None, "", None),
        (None, "kho=off", None),  # it may have no KHO at all, but that is unknown
        ((KHO,), "", False),
        ((KHO,), "kho=on", None),  # setting it up may have failed
        ((KHO,), "kho=off kho=on", None),
        ((KHO, DEFAULT), "", None),
        ((KHO, DEFAULT), "kho=off", False),
        ((KHO, 'CONFIG_CMDLINE="kho=on"', "CONFIG_CMDLINE_BOOL=y"), "", None),
    ],
)
def test_whether_it_hands_over(
    world: World, config: tuple[str, ...] | None, line: str, expected: bool | None
) -> None:
    if config:
        world.config(*config)
    world.write("proc/cmdline", line)
    assert running(world.root).handover is expected


def test_debugfs_is_believed(world: World) -> None:
    world.config(KHO, DEFAULT, DEBUGFS)
    assert running(world.root).handover is None
    (world.root / "sys/kernel/debug").mkdir(parents=True)
    assert running(world.root).handover is None, "it may not be mounted"
    world.write("sys/kernel/debug/sleep_time", "")
    assert running(world.root).handover is False, "it is mounted, and has nothing of KHO"
    (world.root / OUT).mkdir(parents=True)
    assert running(world.root).handover is True


def test_the_device_is_enough(world: World) -> None:
    world.write("dev/liveupdate", "")
    world.write("proc/misc", "")
    assert running(world.root).liveupdate


def test_the_configuration(world: World) -> None:
    assert running(world.root).configuration is None
    path = world.write(f"boot/config-{images.RELEASE}", images.CONFIG)
    found = running(world.root).configuration
    assert found is not None
    assert found.source == str(path)
    path.write_text(images.CONFIG.replace("12.2.0", "13"))
    assert running(world.root).configuration is None, "of another build"


@pytest.mark.parametrize(
    ("config", "lockdown", "expected"),
    [
        (None, None, ""),
        (None, "[none] integrity confidentiality\n", ""),
        (None, "none [integrity] confidentiality\n", "lockdown=integrity"),
        (("CONFIG_KEXEC_SIG=y",), "none integrity [confidentiality]\n", "lockdown=confidentiality"),
        (("CONFIG_KEXEC=y",), "none integrity [confidentiality]\n", ""),
        (("CONFIG_KEXEC_SIG=y",), None, ""),
        (("CONFIG_KEXEC_SIG_FORCE=y",), None, "CONFIG_KEXEC_SIG_FORCE"),
    ],
)
def test_the_signature_policy(
    world: World, config: tuple[str, ...] | None, lockdown: str | None, expected: str
) -> None:
    if config:
        world.config(*config)
    if lockdown:
        world.write("sys/kernel/security/lockdown", lockdown)
    assert running(world.root).demands_signature == expected


SIG, LSM = "CONFIG_KEXEC_SIG=y", "CONFIG_SECURITY_LOCKDOWN_LSM=y"
EFI = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.mark.parametrize(
    ("config", "line", "expected"),
    [
        ((SIG, LSM), "lockdown=confidentiality", "lockdown=confidentiality"),
        ((SIG, LSM), "lockdown=integrity lockdown=nonsense quiet", "lockdown=integrity"),
        ((SIG, LSM), "quiet -- lockdown=integrity", ""),
        ((SIG,), "lockdown=integrity", ""),
        ((LSM,), "lockdown=integrity", ""),
    ],
)
def test_lockdown_that_is_asked_for_where_none_is_shown(
    world: World, config: tuple[str, ...], line: str, expected: str
) -> None:
    world.config(*config).write("proc/cmdline", f"{line}\n")
    assert running(world.root).demands_signature == expected
    world.write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
    assert not running(world.root).demands_signature, "what is shown is so"


@pytest.mark.parametrize(
    ("options", "value", "demanded"),
    [
        ((SIG, "CONFIG_IMA_ARCH_POLICY=y"), b"\6\0\0\0\1", True),
        ((SIG, "CONFIG_IMA_ARCH_POLICY=y"), b"\6\0\0\0\0", False),
        ((SIG,), b"\6\0\0\0\1", False),
    ],
)
def test_secure_boot_demands_signatures_by_way_of_ima(
    world: World, options: tuple[str, ...], value: bytes, demanded: bool
) -> None:
    world.config(*options).write(EFI, value)
    assert bool(running(world.root).demands_signature) == demanded


def test_a_machine_without_anything(tmp_path: Path) -> None:
    found = running(tmp_path)
    assert found == replace(found, release="", banner="", liveupdate=False, handover=None)


# --- /proc/kcore -----------------------------------------------------------------------------------------------------


def test_kcore_in_more_than_one_step(tmp_path: Path) -> None:
    path = tmp_path / "kcore"
    path.write_bytes(core(bytes((1 << 20) - 3000) + KERNEL + bytes(3 << 20)))
    assert scan_kcore(path) == ABI


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        core(KERNEL)[:200],
        core(KERNEL, bits=1),
        core(KERNEL, notes=7),
        core(KERNEL, stext=0x1000),  # in no segment
        core(KERNEL, size=1 << 31),  # as on arm64: the segment is all that there can be
        core(bytes(len(KERNEL))),  # read as zeros
        core(KERNEL).replace(b"SYMBOL(_stext)", b"SYMBOL(_other)"),
    ],
)
def test_kcore_without_the_kernel(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kcore"
    path.write_bytes(content)
    assert scan_kcore(path) is None


def test_kcore_that_is_not_there(tmp_path: Path) -> None:
    assert scan_kcore(tmp_path / "kcore") is None
    assert scan_kcore(tmp_path) is None
