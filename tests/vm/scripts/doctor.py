#!/usr/bin/env python3
"""What `fdbox doctor` says here is what FDBOX_EXPECTED has: {setup: {"ways": [...], check: level, ...}}, in this order."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

EXPECTED = json.loads(os.environ["FDBOX_EXPECTED"])
#: what makes a setup of this machine, by its name
CHANGES = {"kexec_load_disabled": "/proc/sys/kernel/kexec_load_disabled"}


def doctor(setup: str) -> dict[str, object]:
    command = ["fdbox", "doctor", "--json"]
    if "next" in setup:
        command += ["--kernel", os.environ["FDBOX_NEXT"], "--append", "kho=on liveupdate=on"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), (done.returncode, done.stderr)
    said = json.loads(done.stdout)
    assert done.returncode == (0 if said["ways"] else 1)
    return {"ways": said["ways"], **{one["check"]: one["level"] for one in said["findings"]}}


bad = 0
for setup, expected in EXPECTED.items():
    for name, path in CHANGES.items():
        if name in setup:
            Path(path).write_text("1")
    said = doctor(setup)
    for what, wanted in expected.items():
        good = said[what] == wanted
        bad += not good
        print(f"{'ok ' if good else 'BAD'} | {setup} | {what}: {wanted} | {said[what]}")
assert not bad
