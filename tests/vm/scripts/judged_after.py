#!/usr/bin/env python3
"""The next kernel did start: whether it can be asked for what was handed over is what the test expects."""

from __future__ import annotations

import os

from fdbox.errors import KernelError
from fdbox.linux.liveupdate import Device
from fdbox.nextkernel.running import running


def opens() -> bool:
    """Return whether /dev/liveupdate is there, and opens."""
    try:
        with Device.open():
            return True
    except (KernelError, OSError) as error:
        print(error)
        return False


if __name__ == "__main__":
    now = running()
    print(now)
    opened = opens()
    if now.liveupdate is not opened:
        raise SystemExit("it does not know that itself")
    if None in (now.kho.strings, now.luo.strings, now.memfd.strings):
        raise SystemExit(
            "it does not know what it writes: a kernel that was handed something shows less in debugfs"
        )
    print(f"/dev/liveupdate opens: {opened}")
    if str(opened) != os.environ["FDBOX_OPENS"]:
        raise SystemExit(f"expected {os.environ['FDBOX_OPENS']}")
