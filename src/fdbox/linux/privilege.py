"""What this process may do, and what the kernel lets nobody do (capabilities(7), kernel_lockdown(7), pid_namespaces(7))."""

from __future__ import annotations

import re
from pathlib import Path

# include/uapi/linux/capability.h
CAPABILITIES = {"CAP_CHOWN": 0, "CAP_SETUID": 7, "CAP_SYS_ADMIN": 21, "CAP_SYS_BOOT": 22}
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"  # EFI_GLOBAL_VARIABLE


def capabilities(root: Path = Path("/")) -> frozenset[str] | None:
    """Return those of `CAPABILITIES` that this process has; None without /proc."""
    try:
        status = (root / "proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if found is None:
        return None
    mask = int(found[1], 16)
    return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)


def in_initial_pid_namespace(root: Path = Path("/")) -> bool | None:
    """Return whether this is the machine's own pid namespace: in another one reboot(2) ends that, not the machine."""
    try:
        return (root / "proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
    except OSError:
        return None


def lockdown(root: Path = Path("/")) -> str | None:
    """Return "none", "integrity" or "confidentiality"; None where the kernel has no lockdown, or does not tell."""
    try:
        text = (root / "sys/kernel/security/lockdown").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"\[(\w+)\]", text)
    return None if found is None else found[1]


def secure_boot(root: Path = Path("/")) -> bool | None:
    """Return whether the firmware checks what it starts; None where it is no EFI, or does not tell."""
    try:
        value = (root / "sys/firmware/efi/efivars" / _SECURE_BOOT).read_bytes()
    except OSError:
        return None
    return value[4:5] == b"\1"  # four bytes of attributes come first (efivarfs)


def number(path: Path) -> int | None:
    """Return the number in a file of /proc or /sys; None if there is none."""
    try:
        return int(path.read_text(encoding="ascii").split()[0], 0)
    except (OSError, ValueError, IndexError):
        return None


def chosen(path: Path) -> str | None:
    """Return the word in brackets of a file of /sys, "always [advise] never"; None if there is no such file."""
    try:
        found = re.search(r"\[(\w+)\]", path.read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else found[1]
