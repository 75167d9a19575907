"""What the running kernel will write for the next one: whether it hands over at all, and in which formats.

No interface tells the formats. They are read, in this order, from

1. /proc/kcore: the kernel's own memory, where it stands by itself whatever is on disk (root, not under
   lockdown=confidentiality, and CONFIG_PROC_KCORE);
2. the image that it was started from, if that is found and names the very same build;
3. /sys/kernel/debug/kho/out: what is written already, by KHO and by LUO; nothing of memfd. (A kernel that was itself
   handed something shows no `fdt` there, so nothing of KHO: kho_init(), kernel/liveupdate/kexec_handover.c.)

What none of them tells is unknown, and not taken for good.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError
from fdbox.linux import privilege
from fdbox.linux.fd import open_path
from fdbox.nextkernel import command_line, configuration
from fdbox.nextkernel.abi import Abi, scan
from fdbox.nextkernel.find import installed
from fdbox.nextkernel.inspect import inspect
from fdbox.nextkernel.kcore import scan_kcore

if TYPE_CHECKING:
    from fdbox.nextkernel.configuration import Configuration

_LOCKDOWNS = ("integrity", "confidentiality")


@dataclass(frozen=True, slots=True)
class Written:
    """The strings of one format, and where they were read."""

    strings: tuple[str, ...] | None = None  # None: unknown; empty: this kernel does not have it
    source: str = ""


_UNKNOWN = Written()


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What the running kernel is, and what it will write."""

    release: str
    banner: str  # /proc/version
    machine: str
    handover: bool | None  # KHO is on; None: unknown
    liveupdate: bool  # LUO is on
    kho: Written = _UNKNOWN
    luo: Written = _UNKNOWN
    memfd: Written = _UNKNOWN
    others: Written = _UNKNOWN
    configuration: Configuration | None = field(default=None)
    demands_signature: str = (
        ""  # why kexec_file_load(2) takes signed kernels only; empty: it takes others, too
    )


def running(root: Path = Path("/")) -> Running:
    """Return what the running kernel will write; as much of it as this process may see.

    Takes a second or so: the kernel's memory, or its image, is read. `root` is where /proc, /sys and /boot are.
    """
    release = _text(root / "proc/sys/kernel/osrelease")
    config = _configuration(root, release)
    on = _liveupdate(root)
    found = Running(
        release=release,
        banner=_text(root / "proc/version"),
        machine=os.uname().machine,
        handover=True if on else _handover(root, config),
        liveupdate=on,
        configuration=config,
        demands_signature=_signature_policy(root, config),
    )
    return _with_formats(found, root)


def running_image(root: Path = Path("/")) -> Path | None:
    """Return the image that the running kernel was started from; None if it is not to be found, or not that any more."""
    banner = _text(root / "proc/version")
    paths = _images(root, _text(root / "proc/sys/kernel/osrelease"))
    return next((path for path in paths if _of_image(path, banner, root) is not None), None)


def _text(path: Path) -> str:
    """Return a file's text; empty if it is not there, or not for us."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _exists(path: Path) -> bool:
    """Return whether something is there, and this process may see that (debugfs is for root)."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def _mounted(folder: Path) -> bool:
    """Return whether something is mounted there, and this process may see it."""
    try:
        return any(folder.iterdir())
    except OSError:
        return False


# --- on or off -------------------------------------------------------------------------------------------------------


def _liveupdate(root: Path) -> bool:
    """Return whether LUO is on: its device is registered then only (luo_ioctl_init), and /proc/misc names it to everyone."""
    misc = [line.split()[-1:] for line in _text(root / "proc/misc").splitlines()]
    return ["liveupdate"] in misc or _exists(root / "dev/liveupdate")


def _handover(root: Path, config: Configuration | None) -> bool | None:
    if _exists(root / "sys/kernel/debug/kho/out"):
        return True
    if config is None:
        return None
    if not config.has("KEXEC_HANDOVER"):
        return False
    if config.has("KEXEC_HANDOVER_DEBUGFS") and _mounted(root / "sys/kernel/debug"):
        return False
    line = command_line.effective(_text(root / "proc/cmdline"), config)
    said = command_line.switch(line, "kho")
    # Off is off; on may have failed at boot, and that shows nowhere else.
    return None if said or (said is None and config.has("KEXEC_HANDOVER_ENABLE_DEFAULT")) else False


def _configuration(root: Path, release: str) -> Configuration | None:
    paths = [root / "proc/config.gz", *configuration.installed(root, release)]
    return configuration.first_of(paths, _text(root / "proc/version"))


def _signature_policy(root: Path, config: Configuration | None) -> str:
    """Return why a signature is demanded (kimage_validate_signature, kernel/kexec_file.c); empty if it is not.

    Lockdown counts only where KEXEC_SIG is built in. Where the configuration is unknown, it is taken to be.
    """
    if config is not None and config.has("KEXEC_SIG_FORCE"):
        return "CONFIG_KEXEC_SIG_FORCE"
    if config is not None and not config.has("KEXEC_SIG"):
        return ""
    locked = privilege.lockdown(root) or _asked_lockdown(root, config)
    if locked not in (None, "none"):
        return f"lockdown={locked}"
    # arch_get_ima_policy(), security/integrity/ima/ima_efi.c: it then calls set_kexec_sig_enforced()
    if config is not None and config.has("IMA_ARCH_POLICY") and privilege.secure_boot(root):
        return "secure boot, with CONFIG_IMA_ARCH_POLICY"
    return ""


def _asked_lockdown(root: Path, config: Configuration | None) -> str | None:
    """Return the lockdown that the command line asks for: where securityfs is not mounted, nothing else shows it."""
    if config is not None and not config.has("SECURITY_LOCKDOWN_LSM"):
        return None
    line = command_line.effective(_text(root / "proc/cmdline"), config)
    asked = [value for name, value in command_line.parameters(line) if name == "lockdown"]
    return next((value for value in reversed(asked) if value in _LOCKDOWNS), None)


# --- the formats -----------------------------------------------------------------------------------------------------


def _with_formats(found: Running, root: Path) -> Running:
    if (abi := scan_kcore(root / "proc/kcore")) is not None:
        return _all(found, abi, "/proc/kcore")
    for path in _images(root, found.release):
        if (abi := _of_image(path, found.banner, root)) is not None:
            return _all(found, abi, str(path))
    config = found.configuration
    if config is not None and not config.has("KEXEC_HANDOVER"):
        return _all(found, Abi(), config.source)
    return _from_debugfs(found, root / "sys/kernel/debug/kho/out")


def _all(found: Running, abi: Abi, source: str) -> Running:
    return replace(
        found,
        kho=Written(abi.kho, source),
        luo=Written(abi.luo, source),
        memfd=Written(abi.memfd, source),
        others=Written(abi.others, source),
    )


def _images(root: Path, release: str) -> list[Path]:
    paths = [found.image for found in installed(root) if found.release == release]
    named = dict(command_line.parameters(_text(root / "proc/cmdline"))).get("BOOT_IMAGE")
    if named:  # GRUB writes "(hd0,gpt2)/vmlinuz", or a path on a file system that may be /boot
        inner = named.rpartition(")")[2].lstrip("/")
        paths += [root / inner, root / "boot" / inner]
    return paths


def _of_image(path: Path, banner: str, root: Path) -> Abi | None:
    try:
        with open_path(path, os.O_RDONLY) as file:
            image = inspect(file.fileno(), root=root)
    except (OSError, FdboxError):
        return None
    return image.abi if image.banner == banner else None


def _from_debugfs(found: Running, out: Path) -> Running:
    """Take what is in the blobs: an FDT of KHO, and LUO's structure, which begins with its string."""
    kho = _written(out / "fdt", "kho")
    luo = _written(out / "sub_fdts" / "LUO", "luo")
    return replace(found, kho=kho, luo=luo)


def _written(path: Path, part: str) -> Written:
    try:
        abi = scan(path.read_bytes())
    except OSError:
        return _UNKNOWN
    strings: tuple[str, ...] = abi.kho if part == "kho" else abi.luo
    return Written(strings, str(path)) if strings else _UNKNOWN
