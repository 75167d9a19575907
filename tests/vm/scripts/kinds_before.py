#!/usr/bin/env python3
"""A box for each kind, with every sample of it, before the jump."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fdbox
from fdbox.errors import CannotCarry
from fdbox.linux import liveupdate
from fdbox.linux.fd import close_all, open_path
from tests.kinds.samples import Sample, every_sample
from tests.vm.scripts import goods

DISK = Path("/run/disk")
_NOT_CARRIED = {
    "kernel": "the running kernel does not carry",
    "image": "cannot open /dev/liveupdate",
}


def observe_twin(sample: Sample) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Return what is seen of a twin that nothing ever happened to."""
    folder = DISK / "twin" / sample.name
    folder.mkdir(parents=True)
    twin = sample.make(folder)
    seen = sample.observe({name: fd.fileno() for name, fd in twin.items()}, folder)
    close_all(twin.values())
    sample.reboot(folder)
    return seen


def put(client: fdbox.Client, sample: Sample) -> int:
    """Put a sample into the box of its first kind; return how many entries it has."""
    folder = DISK / "own" / sample.name
    folder.mkdir(parents=True)
    entries = sample.make(folder)
    box = client.box(next(iter(sample.kinds.values())))
    named = {f"{sample.name}: {name}": fd for name, fd in entries.items()}
    for entry in box.put_many(named):
        assert entry.kind == sample.kinds[entry.name.rpartition(": ")[2]], (sample.name, entry)
        assert entry.carrier == goods.CARRIER, (sample.name, entry)
    close_all(entries.values())
    return len(entries)


def check_refusals(client: fdbox.Client) -> None:
    """See what only the kernel could carry refused, if it is Live Update's after it was tried with a real preserve."""
    box = client.box("devices")
    if goods.CARRIER == "kernel":
        with liveupdate.Device.open() as device:
            session = device.create_session("probe")
        with session:
            box.put("luo-session", session.fileno())
    # Debian's kernel for clouds has no /dev/iommu.
    for path in filter(os.path.exists, ("/dev/iommu", "/dev/vfio/vfio")):
        with open_path(path, 2) as fd:
            box.put(Path(path).name, fd)
    assert box.list()
    for entry in box.list():
        assert entry.carrier is None, entry
        assert entry.obstacle.startswith(_NOT_CARRIED[goods.CARRIER]), entry
        print(f"{entry.name}: a {entry.kind}: {entry.obstacle} ({entry.remedy})")
    try:
        box.seal()
    except CannotCarry as error:
        print(error)
    else:
        raise AssertionError("a device was sealed")
    box.delete()


def main() -> None:
    """Make, look, put."""
    samples = list(every_sample())
    goods.note("expected", {sample.name: observe_twin(sample) for sample in samples})
    with fdbox.connect() as client:
        check_refusals(client)
        entries = sum(put(client, sample) for sample in samples)
    kinds = {kind for sample in samples for kind in sample.kinds.values()}
    assert entries >= 25
    print(f"{entries} entries of {len(kinds)} kinds, of {len(samples)} samples")


main()
