#!/usr/bin/env python3
"""Real input, after the jump: everything is as it was."""

from __future__ import annotations

import operator

import fdbox
from tests.vm.scripts import goods

with fdbox.connect() as client:
    status = client.status()
    assert not status.lost, status.lost
    before, after = goods.noted("goods"), goods.describe_all(client)
    assert len(before) == goods.SMALL + 2
    assert list(before) == list(after)
    different = {
        key: [
            (what, before[key][what], after[key][what])
            for what in before[key]
            if before[key][what] != after[key][what]
        ]
        for key in before
        if before[key] != after[key]
    }
    assert not different, (len(different), dict(list(different.items())[:5]))
    goods.check_database(client)
    frames = goods.large_frames(client)
    same = sum(map(operator.eq, frames, goods.noted("frames")))
    if goods.CARRIER == "kernel":
        assert frames == goods.noted("frames")
    assert len(frames) * 4096 >= 150_000_000
    assert client.box("bulk").memory(goods.LARGE).recovered
    print(f"{len(after)} entries equal; of {len(frames)} pages {same} in the same frames")
