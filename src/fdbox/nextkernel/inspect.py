"""A kernel image, read before it is trusted: what it is, what it was built with, and what it will accept.

The running kernel does not look: kexec_file_load(2) takes any kernel that starts, also one that cannot read what is
handed to it.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.errors import KernelImageInvalid
from fdbox.nextkernel import configuration
from fdbox.nextkernel.abi import Abi, scan
from fdbox.nextkernel.formats import open_image

if TYPE_CHECKING:
    from fdbox.nextkernel.configuration import Configuration

#: A kernel with an initrd built in has a few hundred MiB.
_LARGEST = 1 << 30
_BANNER = re.compile(rb"Linux version (\S{1,64}) \([^\0\n]*#\d[^\0\n]*")
_RELEASE = re.compile(r"[\w.+~-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelImage:
    """What a kernel image says of itself."""

    path: str  # where it was, for people
    format: str  # "bzImage", "Image", "EFI zboot" or "UKI"
    machine: str  # "x86_64", "aarch64": as uname(2) says it
    compression: str | None  # None: not packed
    release: str  # "7.3.4+deb13-cloud-amd64"
    banner: str  # "Linux version 7.3.4... (gcc ...) #1 SMP ...", as in /proc/version
    abi: Abi
    configuration: Configuration | None  # None: nowhere to be found
    signed: bool  # has a certificate table; whose it is, only the kernel can say
    obstacles: tuple[str, ...]  # why kexec_file_load(2) will not take it
    memory: int  # bytes in one piece that it needs while it starts: KHO scratch must have them
    preferred_address: int  # physical; 0: none


def inspect(kernel: int, config: Path | None = None, *, root: Path = Path("/")) -> KernelImage:
    """Return what an image says of itself; takes a second or less, and the memory of the unpacked kernel.

    Args:
        kernel: The image, borrowed; its position is not moved.
        config: Its configuration, where that is known better than by looking inside and beside it.
        root: Where /boot and /lib/modules are.

    Raises:
        KernelImageInvalid: no kernel, a damaged one, or `config` is no configuration.
        OSError: it cannot be read.
    """
    path = _path_of(kernel)
    try:
        image = open_image(_read(kernel))
        release, banner = _banner(image.kernel)
    except KernelImageInvalid as error:
        raise KernelImageInvalid(f"{path}: {error.message}", remedy=error.remedy) from error
    return KernelImage(
        path=path,
        format=image.format,
        machine=image.machine,
        compression=image.compression,
        release=release,
        banner=banner,
        abi=scan(image.kernel),
        configuration=_given(config)
        if config
        else _found(image.kernel, path, release, banner, root),
        signed=image.signed,
        obstacles=image.obstacles,
        memory=image.memory,
        preferred_address=image.preferred_address,
    )


def _path_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def _read(fd: int) -> bytes:
    """Return the whole file. It may change meanwhile, and so is not mapped: a file cut short would be a SIGBUS."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise KernelImageInvalid("a kernel image is a regular file, and this is none")
    if status.st_size > _LARGEST:
        raise KernelImageInvalid(f"no kernel image has {status.st_size} bytes")
    parts: list[bytes] = []
    at = 0
    while at < status.st_size and (part := os.pread(fd, status.st_size - at, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _banner(kernel: bytes) -> tuple[str, str]:
    found = _BANNER.search(kernel)
    if found is None:
        raise KernelImageInvalid("there is no Linux in the image: it has no version")
    release = found[1].decode("utf-8", "replace")
    if not _RELEASE.fullmatch(release):
        raise KernelImageInvalid(
            "the release of the kernel in the image has characters that none has"
        )
    return release, found[0].decode("utf-8", "replace")


def _given(path: Path) -> Configuration:
    found = configuration.from_file(path)
    if found is None:
        raise KernelImageInvalid(
            f"{path} is no kernel configuration",
            remedy="name the .config that the kernel was built with",
        )
    return found


def _found(kernel: bytes, path: str, release: str, banner: str, root: Path) -> Configuration | None:
    if own := configuration.inside(kernel, "the image"):
        return own
    folder = Path(path).parent
    beside = [folder / f"config-{release}", folder / "config"] if folder.is_absolute() else []
    return configuration.first_of([*beside, *configuration.installed(root, release)], banner)
