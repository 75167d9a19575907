#!/usr/bin/env python3
"""After a kexec by systemd: what was sealed is there; what was not is gone, whatever systemd had in its store."""

from __future__ import annotations

import hashlib

import fdbox
from tests.vm.scripts import goods

with fdbox.connect() as client:
    status = client.status()
    assert not status.lost, status.lost
    assert [box.name for box in client.boxes()] == ["cache"], client.boxes()
    memory = client.box("cache").memory("index")
    assert memory.recovered
    assert hashlib.sha256(memory[:]).hexdigest() == goods.noted("digest")
    print(f"{memory.size} bytes arrived")
