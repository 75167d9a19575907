"""Kernels by version, where distributions and `kernel-install` put them.

- /boot/vmlinuz-V with initrd.img-V (Debian), initramfs-V.img (Fedora, Arch) or initrd-V (SUSE);
- TOKEN/V/linux with TOKEN/V/initrd* in /efi, /boot or /boot/efi (kernel-install(8), the Boot Loader Specification);
- /lib/modules/V/vmlinuz, the copy that packages bring.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fdbox.errors import UsageError

#: The first place that has an image counts; an initrd may be in another.
_BOOT = ("boot", "efi", "boot/efi")
_MODULES = ("lib/modules", "usr/lib/modules")
_INITRDS = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}")


@dataclass(frozen=True, slots=True)
class Installed:
    """A kernel that is installed here."""

    release: str
    image: Path
    initrds: tuple[Path, ...]  # in the order in which they are to be joined

    @property
    def initrd(self) -> Path | None:
        """The one initrd there is; UsageError if there are several."""
        if len(self.initrds) > 1:
            names = ", ".join(str(path) for path in self.initrds)
            raise UsageError(
                f"kernel {self.release} has several initrds: {names}",
                remedy="join them with `cat` into one file, and name that with --initrd",
            )
        return self.initrds[0] if self.initrds else None


def installed(root: Path = Path("/")) -> list[Installed]:
    """Return the kernels that are installed, newest version first, each release once."""
    images: dict[str, Path] = {}
    for release, image in [*_flat(root), *_by_token(root), *_modules(root)]:
        images.setdefault(release, image)
    found = [
        Installed(release, image, _initrds(root, release, image))
        for release, image in images.items()
    ]
    return sorted(found, key=lambda one: _natural(one.release), reverse=True)


def find(version: str, root: Path = Path("/")) -> Installed:
    """Return the one kernel of that version: its whole release, or the beginning of it ("7.3.4" for "7.3.4-amd64").

    Raises:
        UsageError: there is none, or there are several.
    """
    every = installed(root)
    matching = [one for one in every if _begins(one.release, version)]
    exact = [one for one in matching if one.release == version]
    if len(exact or matching) == 1:
        return (exact or matching)[0]
    if matching:
        names = ", ".join(one.release for one in matching)
        raise UsageError(
            f"{version} may be any of {names}",
            remedy="write more of the version, or the path of the image",
        )
    there = ", ".join(one.release for one in every) or "none"
    raise UsageError(
        f"no kernel {version} in {', '.join(f'/{place}' for place in (*_BOOT, *_MODULES))}; there: {there}",
        remedy="install it, or name the path of its image",
    )


def _begins(release: str, version: str) -> bool:
    """Return whether a release begins with a version, and no number is cut ("7.3.1" is not "7.3.12")."""
    rest = release.removeprefix(version)
    if not version or (rest == release):
        return False
    return not (version[-1].isdigit() and rest[:1].isdigit())


def _natural(release: str) -> list[tuple[int, str]]:
    return [(int(number or -1), text) for number, text in re.findall(r"(\d+)|(\D+)", release)]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not there, or not for us
        return []


def _flat(root: Path) -> list[tuple[str, Path]]:
    paths = _entries(root / "boot")
    return [
        (path.name.removeprefix("vmlinuz-"), path)
        for path in paths
        if path.name.startswith("vmlinuz-")
    ]


def _by_token(root: Path) -> list[tuple[str, Path]]:
    return [
        (folder.name, folder / "linux")
        for place in _BOOT
        for token in _entries(root / place)
        for folder in _entries(token)
        if (folder / "linux").is_file()
    ]


def _modules(root: Path) -> list[tuple[str, Path]]:
    return [
        (folder.name, folder / "vmlinuz")
        for place in _MODULES
        for folder in _entries(root / place)
        if (folder / "vmlinuz").is_file()
    ]


def _initrds(root: Path, release: str, image: Path) -> tuple[Path, ...]:
    if image.name == "linux":
        beside = [path for path in _entries(image.parent) if path.name.startswith("initrd")]
        if beside:
            return tuple(beside)
    named = (root / "boot" / name.format(release) for name in _INITRDS)
    return tuple(path for path in named if path.is_file())[:1]
