"""Which run of the kernel this is."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """Return the UUID that the kernel made at its boot (random(4)); a kexec makes a new one.

    OSError if /proc is not mounted.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
