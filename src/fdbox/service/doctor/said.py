"""What a check says.

There are three ways for boxes to cross, and an obstacle says which of them it blocks:

    kernel   a kexec, with the running kernel's Live Update Orchestrator
    image    a kexec, with files
    reboot   a reboot, with files
"""

from __future__ import annotations

import enum
from typing import NamedTuple

KERNEL, IMAGE, REBOOT = "kernel", "image", "reboot"
WAYS = (KERNEL, IMAGE, REBOOT)
KEXEC = (KERNEL, IMAGE)
FILES = (IMAGE, REBOOT)


class Level(enum.Enum):
    """How bad it is; `UNKNOWN`: this process may not see it."""

    OK = "ok"
    WARNING = "warning"
    UNKNOWN = "unknown"
    OBSTACLE = "obstacle"


class Said(NamedTuple):
    """What a check says."""

    level: Level
    text: str
    remedy: str = ""
    #: the ways that an obstacle blocks
    blocks: tuple[str, ...] = ()


def ok(text: str) -> Said:
    """Return that all is well."""
    return Said(Level.OK, text)


def warning(text: str, remedy: str) -> Said:
    """Return that something could be better."""
    return Said(Level.WARNING, text, remedy)


def unknown(text: str, remedy: str) -> Said:
    """Return that it cannot be seen."""
    return Said(Level.UNKNOWN, text, remedy)


def obstacle(text: str, remedy: str, blocks: tuple[str, ...]) -> Said:
    """Return that something stands in some ways."""
    return Said(Level.OBSTACLE, text, remedy, blocks)
