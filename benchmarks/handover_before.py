#!/usr/bin/env python3
"""In the first kernel: preserve, in turns, and stay until the jump."""

from __future__ import annotations

from handover_sides import SIDES, TIMES, note, runs, start

for side, session, count, size in runs():
    process = start([*SIDES[side], "preserve", session, str(count), str(size)])
    assert process.stdout is not None
    process.stdout.readline()  # pages may have to move the first time, and stay where they are
    for _ in range(TIMES - 1):
        note(session, "preserve", int(process.stdout.readline()))
