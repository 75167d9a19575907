#!/usr/bin/env python3
"""An asyncio program whose selector, timer and sockets are in a box, before the jump: it runs, and is killed."""

from __future__ import annotations

import os
import time

import fdbox
from tests.service.test_asyncio_program import ask, running
from tests.vm.scripts import goods

with running() as (first, port):
    assert first == "new"
    ask(port)
    time.sleep(1)
    told = ask(port)
    assert int(told["ticks"]) >= 3
with fdbox.connect() as client:
    box = client.existing_box("asyncio-service")
    feed = next(entry.name for entry in box.list() if entry.name.startswith("feed@"))
    with box.get(feed) as fd:
        os.write(fd.fileno(), b"queued-before-the-jump")
goods.note("port", port)
print(f"serving at {port}: {told}")
