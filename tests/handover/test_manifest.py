from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest
from tests.fakes.carrier import FIRST, SECOND

from fdbox.errors import ManifestInvalid, SameIncarnation
from fdbox.handover import manifest
from fdbox.handover.manifest import Index, Manifest, SavedEntry
from fdbox.linux import memfd
from fdbox.model import BoxKey

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node

BOX = BoxKey(1000, "böx")
SAVED = Manifest(
    FIRST,
    BOX,
    (SavedEntry("one", "label", 0, 0), SavedEntry("two", "", 0, 0), SavedEntry("ü", "ü", 1, 7)),
    (("fdbox,memfd-v1", 3), ("fdbox,other-v2", (1 << 64) - 1)),
)
INDEX = Index(FIRST, (("fdbox-1", BOX), ("fdbox-2", BoxKey(0, "böx"))))


def _stored(root: Node) -> bytes:
    with manifest.store(root) as fd:
        return os.pread(fd.fileno(), 1 << 20, 0)


def _fetched(raw: bytes) -> Node:
    with memfd.create("manifest") as fd:
        os.pwrite(fd.fileno(), raw, 0)
        return manifest.fetch(fd.fileno())


def test_a_manifest_comes_back_as_it_was_written() -> None:
    raw = _stored(manifest.write_manifest(SAVED))
    assert manifest.read_manifest(_fetched(raw), SECOND) == SAVED


def test_an_empty_manifest_comes_back() -> None:
    saved = Manifest(FIRST, BOX, (), ())
    assert (
        manifest.read_manifest(_fetched(_stored(manifest.write_manifest(saved))), SECOND) == saved
    )


def test_an_index_comes_back_as_it_was_written() -> None:
    raw = _stored(manifest.write_index(INDEX))
    assert manifest.read_index(_fetched(raw), SECOND) == INDEX


def test_a_flipped_bit_is_found_wherever_it_is() -> None:
    raw = _stored(manifest.write_manifest(SAVED))
    with memfd.create("manifest") as fd:
        os.pwrite(fd.fileno(), raw, 0)
        for at, byte in enumerate(raw):
            os.pwrite(fd.fileno(), bytes([byte ^ 1 << at % 8]), at)
            with pytest.raises(ManifestInvalid, match="damaged"):
                manifest.fetch(fd.fileno())
            os.pwrite(fd.fileno(), bytes([byte]), at)
        assert manifest.read_manifest(manifest.fetch(fd.fileno()), SECOND) == SAVED


def test_a_truncated_one_is_found_wherever_it_ends() -> None:
    raw = _stored(manifest.write_manifest(SAVED))
    with memfd.create("manifest") as fd:
        os.pwrite(fd.fileno(), raw, 0)
        for length in range(len(raw) - 1, -1, -1):
            os.ftruncate(fd.fileno(), length)
            with pytest.raises(ManifestInvalid):
                manifest.fetch(fd.fileno())


@pytest.mark.parametrize("size", [0, 32, 1 << 40])
def test_a_size_that_cannot_be_is_refused_before_anything_is_read(size: int) -> None:
    with (
        memfd.create("manifest", size) as fd,
        pytest.raises(ManifestInvalid, match=f" {size} bytes"),
    ):
        manifest.fetch(fd.fileno())


def test_the_right_checksum_of_no_device_tree_is_invalid() -> None:
    raw = b"not a tree"
    with memfd.create("manifest") as fd:
        os.pwrite(fd.fileno(), raw + hashlib.sha256(raw).digest(), 0)
        with pytest.raises(ManifestInvalid, match="damaged"):
            manifest.fetch(fd.fileno())


def test_a_manifest_of_this_kernel_is_not_read() -> None:
    with pytest.raises(SameIncarnation, match=FIRST):
        manifest.read_manifest(manifest.write_manifest(SAVED), FIRST)
    with pytest.raises(SameIncarnation, match=FIRST):
        manifest.read_index(manifest.write_index(INDEX), FIRST)
