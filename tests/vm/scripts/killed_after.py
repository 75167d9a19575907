#!/usr/bin/env python3
"""After it: the daemon was killed once a life, one step further on each time, and everything is there."""

from __future__ import annotations

import time
from pathlib import Path

import fdbox
from fdbox.linux import kcmp


def connect() -> fdbox.Client:
    """Return a client, as soon as there is somebody for longer than a moment."""
    end = time.monotonic() + 120
    while True:
        try:
            return fdbox.connect()
        except fdbox.ConnectionLost:
            assert time.monotonic() < end
            time.sleep(0.1)


with connect() as client:
    status = client.status()
    assert (status.arrived, status.lost) == (4, []), status
    for name in ("a", "b"):
        box = client.existing_box(name)
        assert [entry.name for entry in box.list()] == ["m", "twin"]
        with box.get("m") as one, box.get("twin") as other:
            assert kcmp.same_file(one.fileno(), other.fileno())
        assert box.memory("m")[:6] == f"box {name}\n".encode()
    Path("/run/fdbox/fault").unlink()  # it would go on with what clients do
    steps = Path("/run/fdbox/trace").read_text().splitlines()
    lives = steps.count("a new journal is with the keeper")
    print(f"{lives} lives, {len(steps)} steps")
    print(*dict.fromkeys(steps), sep=", ")
    assert lives >= 7
