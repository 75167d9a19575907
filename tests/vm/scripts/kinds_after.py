#!/usr/bin/env python3
"""Every sample of every kind, after the jump: it is what a twin was that nothing ever happened to."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import fdbox
from fdbox.linux.fd import close_all
from tests.kinds.samples import Sample, every_sample
from tests.vm.scripts import goods

DISK = Path("/run/disk")


def check(client: fdbox.Client, sample: Sample, lost: list[str], expected: object) -> None:
    """Raise AssertionError if a sample is not as it was."""
    box = client.existing_box(next(iter(sample.kinds.values())))
    prefix = f"{sample.name}: "
    names = [entry.name for entry in box.list() if entry.name.startswith(prefix)]
    assert {name.removeprefix(prefix) for name in names} == set(sample.kinds), (names, lost)
    assert len(lost) == len(sample.lost), lost
    assert all(said in sentence for said, sentence in zip(sample.lost, lost, strict=True)), lost
    found = box.get_many(names)
    try:
        seen = sample.observe(
            {name.removeprefix(prefix): fd.fileno() for name, fd in found.items()},
            DISK / "own" / sample.name,
        )
    finally:
        close_all(found.values())
    seen = json.loads(json.dumps(seen))
    assert seen == expected, f"{seen}\nis not\n{expected}"


def main() -> int:
    """Check every sample; return how many failed."""
    failed = 0
    with fdbox.connect() as client:
        lost = client.status().lost
        for sample in every_sample():
            reasons = [one.reason for one in lost if one.entry.startswith(f"{sample.name}: ")]
            try:
                check(client, sample, reasons, goods.noted("expected")[sample.name])
            except Exception:  # noqa: BLE001 - one after the other, and all are told
                failed += 1
                print(f"{sample.name}: {traceback.format_exc()}")
            else:
                print(f"{sample.name}: the same")
    return failed


sys.exit(1 if main() else 0)
