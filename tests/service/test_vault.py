"""Boxes that a process before this one had sealed, and what is left of them when the power fails on the way."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fdbox.errors import NoRoom
from fdbox.handover import arrive
from fdbox.handover.carriers import image
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.linux import memfd
from fdbox.linux.fd import close_all
from fdbox.model import BoxKey, BoxState
from fdbox.service.boxes import Quota
from fdbox.service.vault import Vault
from tests.fakes.carrier import FIRST, SECOND, FakeKernel
from tests.service.test_keep import Keeper, keeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import pytest

    from fdbox.service.keep import Keep

__all__ = ["keeper"]
NAMES = ("a", "b", "c")


def key(name: str) -> BoxKey:
    return BoxKey(0, name)


@asynccontextmanager
async def begun(keep: Keep, disk: Path, incarnation: str = FIRST) -> AsyncIterator[Vault]:
    """Be a process that has taken over what the one before it had."""
    kernel = FakeKernel(incarnation)
    vault = Vault(Quota(boxes=9, entries=9, descriptors=9), ImageCarrier(disk, kernel), kernel)
    await asyncio.to_thread(vault.take_over, keep)
    await keep.begin(None)
    try:
        yield vault
    finally:
        await vault.close()


def seal_all(keeper: Keeper, disk: Path) -> None:
    """Have a process seal every box."""

    async def run(keep: Keep) -> None:
        async with begun(keep, disk) as vault:
            for name in NAMES:
                held = vault.glance([memfd.create(name, 4096)])
                assert held is not None
                os.pwrite(held[0].fd.fileno(), name.encode() * 4096, 0)
                vault.create(key(name), exclusive=True)
                await vault.hold(held)
                vault.put(key(name), [("x", held[0])], replace=False)
                await vault.seal(key(name))

    keeper.live(run, FIRST)


def seal_again(keeper: Keeper, disk: Path, then: Callable[[Vault], None] = lambda _: None) -> None:
    async def run(keep: Keep) -> None:
        async with begun(keep, disk) as vault:
            await vault.seal_again()
            then(vault)

    keeper.live(run, FIRST)


def came(disk: Path) -> list[str]:
    """Return the boxes that a reboot finds on a disk."""
    kernel = FakeKernel(SECOND)
    carrier = ImageCarrier(disk, kernel)
    found = []
    for step in arrive.arrive(carrier, kernel, arrive.Past()):
        if isinstance(step, arrive.BoxCame):
            close_all(entry.fd for entry in step.entries.values())
            found.append(step.box.name)
    carrier.close()
    return sorted(found)


def test_a_power_cut_while_boxes_are_sealed_again_finds_all(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    seal_all(keeper, disk)
    disks: list[Path] = []
    write = image._write

    def written(*arguments: object) -> object:
        """Write a file, and keep the disk as it is then."""
        made = write(*arguments)  # type: ignore[arg-type]
        disks.append(tmp_path / f"cut{len(disks)}")
        shutil.copytree(disk, disks[-1])
        return made

    monkeypatch.setattr(image, "_write", written)
    seal_again(keeper, disk)
    disks.append(disk)
    assert len(disks) > len(NAMES)
    assert [came(one) for one in disks] == [list(NAMES)] * len(disks)


def test_what_has_no_room_beside_what_was_saved_before_takes_its_place(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    seal_all(keeper, disk)
    write = image._write

    def written(path: Path, parcels: object) -> object:
        """Write a file if there are at most four then, and an index."""
        if len(list(path.parent.glob("*.image"))) >= 4 and path.name != "index":
            raise NoRoom("the disk is full")
        return write(path, parcels)  # type: ignore[arg-type]

    monkeypatch.setattr(image, "_write", written)

    def check(vault: Vault) -> None:
        assert not vault.losses
        assert {box.state for box in vault.boxes} == {BoxState.SEALED}

    seal_again(keeper, disk, check)
    assert came(disk) == list(NAMES)


def test_an_index_that_cannot_be_written_leaves_boxes_open(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that was saved of them when they were sealed comes instead of what is in them later."""
    disk = tmp_path / "disk"
    seal_all(keeper, disk)
    write = image._write

    def written(path: Path, parcels: object) -> object:
        if path.name == "index":
            raise OSError(5, "Input/output error")
        return write(path, parcels)  # type: ignore[arg-type]

    monkeypatch.setattr(image, "_write", written)

    def check(vault: Vault) -> None:
        assert [(loss.box, loss.entry) for loss in vault.losses] == [(key(n), "") for n in NAMES]
        assert {box.state for box in vault.boxes} == {BoxState.OPEN}

    seal_again(keeper, disk, check)
    assert came(disk) == []
