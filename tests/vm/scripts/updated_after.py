#!/usr/bin/env python3
"""After it: everything is there, by the carrier that was to take it, and systemd has ended what ran."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import fdbox
from tests.vm.scripts import goods

with fdbox.connect() as client:
    status = client.status()
    assert not status.lost, status.lost
    assert status.arrived == 2, status.arrived
    memory = client.existing_box("cache").memory("index")
    assert memory.recovered
    assert hashlib.sha256(memory[:]).hexdigest() == goods.noted("digest")
    with client.existing_box("other").get("count") as fd:
        assert os.eventfd_read(fd.fileno()) == 41
    last = client.last_update()
    assert last.arrived, last
    assert last.missing == [], last.missing
    carriers = {entry.carrier for box in last.boxes for entry in box.entries}
    assert carriers == {os.environ["FDBOX_CARRIER"]}, carriers
assert (Path(os.environ["FDBOX_NOTES"]) / "ended").exists(), "systemd has ended nothing"
subprocess.run(["fdbox", "update", "--last"], check=True)
