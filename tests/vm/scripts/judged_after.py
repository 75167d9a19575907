#!/usr/bin/env python3
"""The next kernel did start: whether it can be asked for what was handed over is what the test expects."""

from __future__ import annotations

import os

from fdbox.errors import KernelError
from fdbox.linux.liveupdate import Device


def opens() -> bool:
    """Return whether /dev/liveupdate is there, and opens."""
    try:
        with Device.open():
            return True
    except (KernelError, OSError) as error:
        print(error)
        return False


if __name__ == "__main__":
    found = str(opens())
    print(f"/dev/liveupdate opens: {found}")
    if found != os.environ["FDBOX_OPENS"]:
        raise SystemExit(f"expected {os.environ['FDBOX_OPENS']}")
