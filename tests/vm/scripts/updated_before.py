#!/usr/bin/env python3
"""Before an update where systemd is PID 1: two boxes, both open, and a service that systemd has to end in order."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import fdbox
from tests.vm.scripts import goods

ENDED = Path(os.environ["FDBOX_NOTES"]) / "ended"

with fdbox.connect() as client:
    memory = client.box("cache").memory("index", size=16 << 20)
    memory[:] = os.urandom(16 << 20)
    goods.note("digest", hashlib.sha256(memory[:]).hexdigest())
    with fdbox.OwnedFd(os.eventfd(41)) as fd:
        client.box("other").put("count", fd)
    print([(entry.name, entry.carrier) for entry in client.box("cache").list()])
    assert {entry.carrier for entry in client.box("cache").list()} == {os.environ["FDBOX_CARRIER"]}

# It lives until systemd ends it, and says so: `reboot` alone would not.
stop = f"/bin/touch {ENDED}"
command = ["systemd-run", "--unit=witness", f"--property=ExecStop={stop}", "/bin/sleep", "infinity"]
subprocess.run(command, check=True)
