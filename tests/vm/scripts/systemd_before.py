#!/usr/bin/env python3
"""Before a kexec by systemd: a sealed box, and an open one."""

from __future__ import annotations

import hashlib
import os

import fdbox
from tests.vm.scripts import goods

with fdbox.connect() as client:
    box = client.box("cache")
    memory = box.memory("index", size=16 << 20)
    memory[:] = os.urandom(16 << 20)
    goods.note("digest", hashlib.sha256(memory[:]).hexdigest())
    print(box.seal())
    client.box("open").memory("index", size=4096)
