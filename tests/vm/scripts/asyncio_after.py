#!/usr/bin/env python3
"""The asyncio program goes on: at the same port, with what was queued, and its timer goes off."""

from __future__ import annotations

import time

import fdbox
from tests.service.test_asyncio_program import ask, running
from tests.vm.scripts import goods

with fdbox.connect() as client:
    assert client.status().lost == []
with running() as (first, port):
    assert first == "recovered"
    assert port == goods.noted("port")
    ask(port)
    time.sleep(1)
    told = ask(port)
    assert int(told["ticks"]) >= 3, told
    assert told["read"].strip() == "queued-before-the-jump", told
    more = ask(port, b"+more")
    time.sleep(0.5)
    assert ask(port)["read"].strip() == "queued-before-the-jump+more"
print(f"serving at {port} again: {told}")
