#!/usr/bin/env python3
"""Before an arrival that is killed again and again: two boxes, and an open file under two names."""

from __future__ import annotations

import os
from pathlib import Path

import fdbox

with fdbox.connect() as client:
    for name in ("a", "b"):
        memory = client.box(name).memory("m", size=1 << 20)
        memory[:6] = f"box {name}\n".encode()
        with client.box(name).get("m") as fd:
            client.box(name).put("twin", fd)
# In the next kernel the daemon is killed at its first step, then at its second one, and so on.
Path(os.environ["FAULT_FILE"]).write_text("0 kill 1")
