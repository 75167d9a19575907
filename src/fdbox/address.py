"""Where the daemon's socket is."""

from __future__ import annotations

import os
from pathlib import Path

from fdbox.errors import UsageError

SOCKET_NAME = "io.fdbox"
SYSTEM_SOCKET = Path("/run/fdbox") / SOCKET_NAME


def default_socket() -> Path:
    """Return `$FDBOX_SOCKET`, else the socket of the machine (as root) or of this user's session.

    Raises:
        UsageError: neither `FDBOX_SOCKET` nor `XDG_RUNTIME_DIR` is set for an ordinary user.
    """
    if named := os.environ.get("FDBOX_SOCKET"):
        return Path(named)
    if os.geteuid() == 0:
        return SYSTEM_SOCKET
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "fdbox" / SOCKET_NAME
    raise UsageError(
        "no place for the daemon's socket is known", remedy="set FDBOX_SOCKET or XDG_RUNTIME_DIR"
    )
