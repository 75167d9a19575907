#!/usr/bin/env python3
"""Boxes are sealed, unsealed, sealed anew, and at last all sealed by an update that jumps; each time a mark says so."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import fdbox
from fdbox.linux import memfd
from tests.vm.scripts.marks import mark

MIB = 1 << 20
#: the box and the version of it that an image has, after each step; the last step is the update
STATES: tuple[dict[str, int], ...] = (
    {},
    {"a": 1},
    {"a": 1, "b": 1},
    {"b": 1},
    {"a": 2, "b": 1},
    {"a": 2},
    {"a": 2, "b": 2, "c": 1},
)
JUMP = "console=ttyS0 quiet panic=-1 rdinit=/none"  # there it panics, and the machine ends


def content(box: str, version: int) -> dict[str, bytes]:
    """Return the entries of a box."""
    chance = random.Random(f"{box} {version}")
    text = f"box {box}, version {version}\n".encode()
    return {
        "noise": chance.randbytes(5 * MIB + version),
        "text": text * 200_000,
        "small": text,
        "hole": bytes(3 * MIB) + text,
    }


def expected(state: int) -> dict[str, bytes]:
    """Return all that a state consists of."""
    return {
        f"{box}/{name}": text
        for box, version in STATES[state].items()
        for name, text in content(box, version).items()
    }


def _fill(client: fdbox.Client, name: str, version: int) -> None:
    for entry, text in content(name, version).items():
        with memfd.create(entry, len(text)) as fd:
            start = len(text) - len(text.lstrip(b"\0"))  # the rest stays a hole
            os.pwrite(fd.fileno(), text[start:], start)
            client.box(name).put(entry, fd, replace=True)


def _step(client: fdbox.Client, before: dict[str, int], after: dict[str, int]) -> None:
    for name in before.keys() - after.keys():
        client.box(name).unseal()
    for name in after.keys() - before.keys():
        _fill(client, name, after[name])
        client.box(name).seal()


def main() -> None:
    """Go through all states."""
    subprocess.Popen(["fdbox", "serve"])
    while not Path("/run/fdbox/io.fdbox").exists():
        time.sleep(0.05)
    with fdbox.connect() as client:
        mark("0")
        for number in range(1, len(STATES) - 1):
            _step(client, STATES[number - 1], STATES[number])
            mark(str(number))
        for name in ("b", "c"):
            _fill(client, name, STATES[-1][name])
        assert client.box("a").list()[0].carrier == "image"
    images = ["--kernel", "/run/vm/next-kernel", "--initrd", "/run/vm/next-initrd"]
    subprocess.run(["fdbox", "update", *images, "--append", JUMP], check=True)


if __name__ == "__main__":
    main()
