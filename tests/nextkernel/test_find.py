from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fdbox.errors import UsageError
from fdbox.nextkernel.find import find, installed

if TYPE_CHECKING:
    from pathlib import Path

DEBIAN = "7.3.4+deb13-cloud-amd64"
TOKEN = "6f1c3e0a4b7d4f0e9a6d2f1b8c5e7a90"


def place(root: Path, *paths: str) -> None:
    """Put empty files there."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


@pytest.mark.parametrize(
    ("image", "initrd"),
    [
        (f"boot/vmlinuz-{DEBIAN}", f"boot/initrd.img-{DEBIAN}"),
        (f"boot/vmlinuz-{DEBIAN}", f"boot/initramfs-{DEBIAN}.img"),
        (f"boot/vmlinuz-{DEBIAN}", f"boot/initrd-{DEBIAN}"),
        (f"boot/vmlinuz-{DEBIAN}", None),
        (f"boot/{TOKEN}/{DEBIAN}/linux", f"boot/{TOKEN}/{DEBIAN}/initrd"),
        (f"efi/debian/{DEBIAN}/linux", f"efi/debian/{DEBIAN}/initrd.img-{DEBIAN}"),
        (f"boot/efi/{TOKEN}/{DEBIAN}/linux", None),
        (f"efi/{TOKEN}/{DEBIAN}/linux", f"boot/initrd.img-{DEBIAN}"),
        (f"lib/modules/{DEBIAN}/vmlinuz", f"boot/initrd.img-{DEBIAN}"),
        (f"usr/lib/modules/{DEBIAN}/vmlinuz", None),
    ],
)
@pytest.mark.parametrize("version", [DEBIAN, "7.3.4", "7.3", "7", "7.3.4+deb13"])
def test_every_place(tmp_path: Path, image: str, initrd: str | None, version: str) -> None:
    place(tmp_path, image, *([initrd] if initrd else []))
    found = find(version, tmp_path)
    assert (found.release, found.image) == (DEBIAN, tmp_path / image)
    assert found.initrd == (tmp_path / initrd if initrd else None)


def test_boot_comes_first(tmp_path: Path) -> None:
    places = [f"boot/vmlinuz-{DEBIAN}", f"efi/x/{DEBIAN}/linux", f"lib/modules/{DEBIAN}/vmlinuz"]
    place(tmp_path, *places)
    assert find(DEBIAN, tmp_path).image == tmp_path / places[0]
    assert len(installed(tmp_path)) == 1


def test_newest_first(tmp_path: Path) -> None:
    versions = ["6.9.0", "6.12.1", "7.3.10-amd64", "7.3.4-amd64", "rescue"]
    place(tmp_path, *(f"boot/vmlinuz-{version}" for version in versions))
    order = ["7.3.10-amd64", "7.3.4-amd64", "6.12.1", "6.9.0", "rescue"]
    assert [one.release for one in installed(tmp_path)] == order


def test_no_number_is_cut(tmp_path: Path) -> None:
    place(tmp_path, "boot/vmlinuz-7.3.12")
    for version in ("7.3.1", "", "12", "7.3.12.", "7.3.120"):
        with pytest.raises(UsageError, match=r"there: 7\.3\.12 "):
            find(version, tmp_path)


def test_several_are_named(tmp_path: Path) -> None:
    place(tmp_path, "boot/vmlinuz-7.3.4-amd64", "lib/modules/7.3.4-cloud/vmlinuz")
    with pytest.raises(UsageError, match=r"7\.3\.4 may be any of 7\.3\.4-cloud, 7\.3\.4-amd64"):
        find("7.3.4", tmp_path)
    place(tmp_path, "boot/vmlinuz-7.3.4")
    assert find("7.3.4", tmp_path).image.name == "vmlinuz-7.3.4", "the whole of it is meant"


def test_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no kernel 7 in /boot, /efi, .*; there: none"):
        find("7", tmp_path)


def test_several_initrds(tmp_path: Path) -> None:
    folder = f"boot/{TOKEN}/{DEBIAN}"
    place(tmp_path, f"{folder}/linux", f"{folder}/initrd-1", f"{folder}/initrd-2")
    found = find(DEBIAN, tmp_path)
    with pytest.raises(UsageError, match=r"several initrds: .*initrd-1, .*initrd-2") as raised:
        _ = found.initrd
    assert "--initrd" in raised.value.remedy


def test_a_folder_is_no_kernel(tmp_path: Path) -> None:
    place(tmp_path, f"lib/modules/{DEBIAN}/vmlinuz/x", f"boot/{TOKEN}/{DEBIAN}/linux/x", "boot/a")
    assert installed(tmp_path) == []
