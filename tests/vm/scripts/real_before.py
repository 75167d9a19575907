#!/usr/bin/env python3
"""Real input, before the jump: a file of 150 MB and more, a database, a thousand small memories of three users."""

from __future__ import annotations

import os
import time
from pathlib import Path

import fdbox
from fdbox.linux import memfd
from tests.vm.scripts import goods, sqlite_fd


def fill_large(client: fdbox.Client) -> None:
    """Put the file into memory with the command line, as a user would."""
    source = Path(os.environ["FDBOX_LARGE_FILE"])
    assert source.stat().st_size >= 150_000_000
    assert (
        os.spawnlp(
            os.P_WAIT, "fdbox", "fdbox", "memory", "bulk", goods.LARGE, "--from", str(source)
        )
        == 0
    )
    print(client.box("bulk").list())


def write_database(client: fdbox.Client) -> None:
    """Let SQLite write a database into a memfd, through the path of its descriptor."""
    with memfd.create("sqlite", 0) as fd:
        base = sqlite_fd.connect(fd.fileno())
        base.execute("pragma journal_mode = memory")
        base.execute("create table t (id integer primary key, text)")
        base.executemany(
            "insert into t values (?, ?)", [(n, f"row {n}") for n in range(goods.ROWS)]
        )
        base.commit()
        base.close()
        client.box("bulk").put(goods.DATABASE, fd)


def put_small(client: fdbox.Client) -> None:
    """Put a thousand memories into three boxes of three users."""
    made: dict[int, dict[str, fdbox.OwnedFd]] = {user: {} for user in goods.USERS}
    for number in range(goods.SMALL):
        fd, owner = goods.make_small(number)
        made[owner][goods.small_name(number)] = fd
    for owner, entries in made.items():
        box = client.box("small", owner)
        names = list(entries)
        for start in range(0, len(names), 253):
            box.put_many({name: entries[name] for name in names[start : start + 253]})
        for fd in entries.values():
            fd.close()


with fdbox.connect() as client:
    fill_large(client)
    write_database(client)
    put_small(client)
    goods.check_database(client)
    goods.note("goods", goods.describe_all(client))
    # The frames are taken after a first preserve, which moves pages out of the areas that the next kernel boots in.
    begun = time.monotonic()
    client.box("bulk").seal()
    print(f"seal of the large box: {time.monotonic() - begun:.2f} s")
    goods.note("frames", goods.large_frames(client))
    print(f"{len(goods.noted('goods'))} entries in {len(client.boxes())} boxes")
