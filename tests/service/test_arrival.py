"""What keeps something from arriving keeps nothing else, and never the daemon."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.errors import KeeperGone
from fdbox.handover import seal
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.linux import memfd
from fdbox.linux.fd import close_all
from fdbox.model import BoxKey, Description
from fdbox.service.arrival import Arrival
from fdbox.service.keep import Keep
from tests.fakes.carrier import SECOND, FakeCarrier, FakeKernel
from tests.service.daemon import Daemon
from tests.service.test_keep import Keeper, keeper
from tests.service.test_vault import begun

if TYPE_CHECKING:
    from pathlib import Path

    from fdbox.service.vault import Vault

__all__ = ["keeper"]


def leave(disk: Path, *names: str) -> None:
    """Be the last kernel, which leaves boxes of two entries."""
    kernel = FakeKernel()
    carrier = ImageCarrier(disk, kernel)
    description = Description("memfd", 4096, "m")
    sealed = []
    for name in names:
        fds = [memfd.create("m", 4096) for _ in "xy"]
        entries = {one: (fd.fileno(), description) for one, fd in zip("xy", fds, strict=True)}
        sealed.append(seal.seal(BoxKey(0, name), entries, carrier, kernel))
        close_all(fds)
    seal.write_index(sealed, carrier, kernel)
    for one in sealed:
        one.end()
    carrier.close()


def entries(vault: Vault) -> dict[str, list[str]]:
    return {box.key.name: list(box.entries) for box in vault.boxes}


def test_what_the_keeper_has_no_room_for_arrives(
    keeper: Keeper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper.environment["FDSTORE"] = "4"  # three for entries
    leave(tmp_path / "disk", "a", "b")

    async def arrive(keep: Keep) -> None:
        async with begun(keep, tmp_path / "disk", SECOND) as vault:
            await Arrival(vault, {}).receive()
            assert entries(vault) == {"a": ["x", "y"], "b": ["x", "y"]}
            assert vault.unheld == ["x", "y"]
            close_all(vault.remove(BoxKey(0, "b"), ["x"]))
            close_all(vault.remove(BoxKey(0, "a"), ["x"]))

    async def look(keep: Keep) -> None:
        async with begun(keep, tmp_path / "disk", SECOND) as vault:
            await Arrival(vault, {}).receive()
            assert entries(vault)["a"] == ["y"]
            assert {(loss.box, loss.entry) for loss in vault.losses} == {(BoxKey(0, "b"), "y")}

    keeper.live(arrive, SECOND)
    assert "box 'b' of user 0 ends with this process" in caplog.text
    assert "FileDescriptorStoreMax=" in caplog.text
    keeper.live(look, SECOND)


def test_a_keeper_that_ends_meanwhile_ends_no_arrival(
    keeper: Keeper,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    leave(tmp_path / "disk", "a", "b")

    async def gone(*_: object) -> None:
        raise KeeperGone("the keeper is gone")

    async def arrive(keep: Keep) -> None:
        async with begun(keep, tmp_path / "disk", SECOND) as vault:
            monkeypatch.setattr(Keep, "hold", gone)
            monkeypatch.setattr(Keep, "hold_session", gone)
            await Arrival(vault, {}).receive()
            assert entries(vault) == {"a": ["x", "y"], "b": ["x", "y"]}

    keeper.live(arrive, SECOND)
    assert caplog.text.count("ends with this process: the keeper is gone") == 5


def test_a_folder_that_is_none_keeps_nobody_from_starting(
    tmp_path: Path, socket_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    check_starts(ImageCarrier(disk, FakeKernel()), socket_path)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("what is this?")])
def test_a_carrier_that_cannot_be_asked_keeps_nobody_from_starting(
    error: Exception, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: FakeCarrier) -> None:
        raise error

    monkeypatch.setattr(FakeCarrier, "indexes", fail)
    check_starts(FakeCarrier(), socket_path, str(error))


def check_starts(carrier: ImageCarrier | FakeCarrier, socket: Path, lost: str = "") -> None:
    daemon = Daemon(socket, carrier, FakeKernel())
    try:
        with fdbox.connect(socket) as client, fdbox.OwnedFd(os.eventfd(7)) as fd:
            assert lost in client.status().lost[0].reason
            client.box("new").put("x", fd)
    finally:
        daemon.stop()
