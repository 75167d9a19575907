"""What the keeper and the service say to each other: FDSTORE=1 as in sd_notify(3), which systemd speaks too, and this.

The keeper's version is in the service's environment (`FDBOX_KEEPER`; systemd sets none, so it has 0). The service asks
only for what that version has; a keeper goes on to understand all that came before its own. Assignments that one
does not know are left alone, as sd_notify(3) has it. So either may be older than the other.

    version 1   X_FDBOX_REEXEC=1: become the code that is now on disk, with all that is held
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
VARIABLE = "FDBOX_KEEPER"
REEXEC = "X_FDBOX_REEXEC"
#: descriptors that a keeper takes: their names travel in one environment variable, which takes 128 KiB, 7 bytes a name
MAX_DESCRIPTORS = 18_000
_RESERVED = 1616


def room(environment: Mapping[str, str]) -> int:
    """Return how many descriptors the keeper of the process with this environment takes; 0 if it has none.

    FDSTORE says so; systemd sets it from 254 on, where the unit has FileDescriptorStoreMax=.
    """
    told = environment.get("FDSTORE", "")
    return min(int(told), MAX_DESCRIPTORS) if told.isdecimal() else 0


def room_for_entries(environment: Mapping[str, str]) -> int:
    """Return how many of them entries may be: not the journals, the socket, deliveries, nor what is on its way."""
    most = room(environment)
    return most - min(_RESERVED, most // 4)


def is_kept(environment: Mapping[str, str]) -> bool:
    """Return whether a keeper, ours or systemd's, holds descriptors for this process, which has this environment.

    Not if the environment was meant for another: systemd listens to the process that it has started (SYSTEMD_EXEC_PID), and
    closes what others send without a word.
    """
    meant = VARIABLE in environment or environment.get("SYSTEMD_EXEC_PID") == str(os.getpid())
    return meant and room(environment) > 0 and "NOTIFY_SOCKET" in environment
