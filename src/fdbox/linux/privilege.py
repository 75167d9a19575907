"""What a process may do, and what the kernel lets nobody do (capabilities(7), namespaces(7), kernel_lockdown(7)).

A process is named by its number in /proc, or is "self". What is not there, or not for us to see, is None.
"""

from __future__ import annotations

import re
from pathlib import Path

# include/uapi/linux/capability.h: those that fdbox has a use for
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SETUID": 7,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_BOOT": 22,
    "CAP_WAKE_ALARM": 35,
}
#: PROC_PID_INIT_INO and PROC_USER_INIT_INO, include/linux/proc_ns.h
_INITIAL = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}
_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"  # EFI_GLOBAL_VARIABLE
_ROOT = Path("/")


def capabilities(process: int | str = "self", root: Path = _ROOT) -> frozenset[str] | None:
    """Return those of `CAPABILITIES` that a process has."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", _of(process, "status", root), re.MULTILINE)
    if found is None:
        return None
    mask = int(found[1], 16)
    return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)


def file_limit(process: int | str = "self", root: Path = _ROOT) -> int | None:
    """Return how far a process can raise its RLIMIT_NOFILE."""
    found = re.search(r"^Max open files +\d+ +(\d+)", _of(process, "limits", root), re.MULTILINE)
    return None if found is None else int(found[1])


def in_initial_namespace(kind: str, process: int | str = "self", root: Path = _ROOT) -> bool | None:
    """Return whether the "pid" or "user" namespace of a process is the machine's own.

    In another pid namespace reboot(2) ends that, not the machine; in another user namespace root has no power over it.
    """
    folder = root / "proc" / str(process) / "ns"
    try:
        return (folder / kind).stat().st_ino == _INITIAL[kind]
    except FileNotFoundError:  # a kernel that can have no others does not show this one
        return True if folder.is_dir() else None
    except OSError:
        return None


def lockdown(root: Path = _ROOT) -> str | None:
    """Return "none", "integrity" or "confidentiality"."""
    return chosen(root / "sys/kernel/security/lockdown")


def secure_boot(root: Path = _ROOT) -> bool | None:
    """Return whether the firmware checks what it starts."""
    try:
        value = (root / "sys/firmware/efi/efivars" / _SECURE_BOOT).read_bytes()
    except OSError:
        return None
    return value[4:5] == b"\1"  # four bytes of attributes come first (efivarfs)


def appraised_kernels(root: Path = _ROOT) -> str | None:
    """Return IMA's rule for kernels that are loaded (Documentation/ABI/testing/ima_policy); it is for root to read, if at all."""
    try:
        rules = (root / "sys/kernel/security/ima/policy").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    words = (line.split() for line in rules.splitlines())
    return next(
        (" ".join(rule) for rule in words if {"appraise", "func=KEXEC_KERNEL_CHECK"} <= {*rule}),
        None,
    )


def number(path: Path) -> int | None:
    """Return the number in a file of /proc or /sys."""
    try:
        return int(path.read_text(encoding="ascii").split()[0], 0)
    except (OSError, ValueError, IndexError):
        return None


def chosen(path: Path) -> str | None:
    """Return the word in brackets of a file of /sys, "always [advise] never"."""
    try:
        found = re.search(r"\[(\w+)\]", path.read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else found[1]


def _of(process: int | str, name: str, root: Path) -> str:
    try:
        return (root / "proc" / str(process) / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
