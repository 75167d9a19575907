"""A hundred thousand components with something wrong in them."""

from __future__ import annotations

import hashlib
import os
import random
import zlib
from typing import TYPE_CHECKING

import pytest

from fdbox.errors import ManifestInvalid
from fdbox.fdt import blob
from fdbox.handover import manifest
from fdbox.kinds.freight import Place
from fdbox.linux import memfd
from tests.kinds.conformance import World, load_raw, mutants
from tests.kinds.samples import every_sample

if TYPE_CHECKING:
    from pathlib import Path

    from fdbox.fdt.tree import Node
    from tests.kinds.samples import Sample

TOTAL = 100_000
PARTS = 8
SAMPLES = [
    sample
    for sample in every_sample()
    if not sample.vm_only and (os.geteuid() == 0 or not sample.root)
]


def check_refused_as_a_whole(raw: bytes, component: Node) -> None:
    """What is stored has a checksum: nothing of it is loaded if a bit is not as it was."""
    whole = blob.write(component)
    if raw == whole:
        return
    with memfd.create("stored") as stored:
        os.write(stored.fileno(), raw + hashlib.sha256(whole).digest())
        with pytest.raises(ManifestInvalid, match=r"damaged|cannot be"):
            manifest.fetch(stored.fileno())


def fuzz(sample: Sample, world: World, count: int) -> tuple[int, int]:
    """Return how many mutants there were, and how many files came of those whose checksum is right all the same."""
    sealed = world.seal(world.make(sample))
    made = {
        Place(number, index): file.fd
        for number, part in enumerate(sealed.parts)
        for index, file in enumerate(part.files)
    }
    done = loaded = 0
    chance = random.Random(zlib.crc32(sample.name.encode()))
    try:
        before = len(os.listdir("/proc/self/fd"))
        for part in sealed.parts:
            for raw in mutants(part.component, chance, count // len(sealed.parts) + 1):
                check_refused_as_a_whole(raw, part.component)
                loaded += load_raw(part.kind.name, raw, world, made)
                done += 1
        assert len(os.listdir("/proc/self/fd")) == before, sample.name
    finally:
        sealed.thaw()
    return done, loaded


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_mutant_crashes_leaks_or_is_loaded(part: int, tmp_path: Path) -> None:
    done = loaded = 0
    for number, sample in enumerate(SAMPLES[part::PARTS]):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(folder)
        try:
            mutated, came = fuzz(sample, world, TOTAL // len(SAMPLES) + 1)
        finally:
            world.close()
            sample.reboot(folder / "own")
        done, loaded = done + mutated, loaded + came
    print(f"{done} mutants: none loaded; {loaded} files of them, had their checksums been right")
    assert done >= TOTAL // PARTS * 9 // 10
