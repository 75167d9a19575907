"""What stays, and what comes, when the disk, or somebody on it, is in the way of images."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fakes.carrier import SECOND, FakeCarrier, FakeKernel
from tests.handover.home import Home, memory

from fdbox.errors import CannotCarry, FdboxError, KernelError, NoRoom
from fdbox.handover import arrive, seal
from fdbox.handover.carriers import image, imagefolder
from fdbox.handover.carriers.choice import KernelAndImage
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.kinds import _memory, registry
from fdbox.linux import files
from fdbox.linux.fd import close_all
from fdbox.model import BoxKey, Description

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdbox.fdt.tree import Node
    from fdbox.handover.arrive import Arrived, Loss
    from fdbox.linux.fd import OwnedFd

MIB = 1 << 20


def failing(name: str, code: int) -> Callable[[Path], None]:
    """Return an unlink(2) that fails for files of this name."""
    real = Path.unlink

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        if path.name.endswith(name):
            raise OSError(code, os.strerror(code))
        real(path, missing_ok=missing_ok)

    return unlink


# --- when it is sealed -----------------------------------------------------------------------------------------------


def test_an_index_that_cannot_be_written_leaves_the_one_before(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.box("a", x=b"one")
    home.publish()
    box = home.box("b", x=b"two")

    def full(path: Path, parcels: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(image, "_write", full)
        with pytest.raises(NoRoom):
            home.publish()
    home.unseal(box)
    home.boot()
    assert home.arrive() == ({"a/x": b"one"}, [])


def test_an_index_needs_no_room_that_is_kept_free(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.box("a", x=b"one")
    monkeypatch.setattr(files, "free_bytes", lambda path: imagefolder.RESERVE)
    with pytest.raises(NoRoom):
        home.box("b", x=b"two")
    home.publish()
    home.boot()
    assert home.arrive() == ({"a/x": b"one"}, [])


def test_what_cannot_be_cleared_away_spoils_no_index(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.box("a", x=b"one")
    home.publish()
    (home.carrier.own / "a folder").mkdir()
    home.box("b", x=b"two")
    home.publish()
    assert "what nobody needs is still in" in caplog.text
    home.boot()
    assert home.arrive() == ({"a/x": b"one", "b/x": b"two"}, [])


def test_an_index_that_cannot_be_removed_is_told_and_tried_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = home.box("a", x=b"old")
    home.publish()
    home.unseal(box)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing("index", errno.EROFS))
        with pytest.raises(KernelError, match="cannot remove"):
            home.publish()
    home.publish()
    home.boot()
    assert home.arrive() == ({}, [])


def test_the_originals_go_on_if_an_image_cannot_be_removed(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    box = home.box("a", x=b"one")
    monkeypatch.setattr(Path, "unlink", failing(".image", errno.EROFS))
    home.unseal(box)
    assert "what nobody needs is still in" in caplog.text


def test_another_folder_in_its_place_has_a_lock_of_its_own(home: Home) -> None:
    home.box("a", x=b"one")
    home.publish()
    home.directory.rename(home.directory.with_name("moved"))
    other = ImageCarrier(home.directory, FakeKernel(SECOND))
    other.prepare()
    carriage = home.carrier.carriage()
    assert carriage.carrier is None
    assert "another fdbox" in carriage.obstacle
    other.close()


def test_an_index_names_no_image_that_somebody_has_removed(home: Home) -> None:
    home.box("a", x=b"one")
    home.publish()
    shutil.rmtree(home.directory)
    home.box("b", x=b"two")
    with pytest.raises(CannotCarry, match="somebody has removed"):
        home.publish()


def test_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(tmp_path / "nowhere")
    home = Home(tmp_path / "images")
    with pytest.raises(KernelError, match="File exists"):
        home.box("a", x=b"one")
    home.end()


def test_streams_need_a_folder_that_outlives_the_kernel() -> None:
    kernel = FakeKernel(free=seal.RESERVE + MIB)
    both = KernelAndImage(FakeCarrier(), ImageCarrier(Path("/dev/shm/fdbox-none"), kernel))
    assert not both.streams
    with memory(b"7" * (4 * MIB), 64 * MIB) as fd, pytest.raises(NoRoom):
        entries = {"m": (fd.fileno(), Description("memfd", 64 * MIB, "m"))}
        seal.seal(BoxKey(0, "b"), entries, both, kernel)
    assert not Path("/dev/shm/fdbox-none").exists()


# --- when it arrives -------------------------------------------------------------------------------------------------


def kept(home: Home) -> list[str]:
    return [name.partition(".")[2] for name in home.files()]


def test_an_image_of_which_an_entry_could_not_be_made_is_kept(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.box("a", x=b"1", y=b"2")
    home.publish()
    home.boot()

    def refuse(node: Node, fd: OwnedFd) -> None:
        raise KernelError("cannot give the memory to user 5")

    monkeypatch.setattr(_memory, "restore", refuse)
    came, lost = home.arrive()
    assert (came, len(lost)) == ({}, 2)
    assert kept(home) == ["kept"]


def test_an_image_with_a_component_of_another_version_is_kept(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(registry.CARRIED["memfd"]), "compatible", "fdbox,memfd-v9")
        home.box("a", x=b"1")
        home.publish()
    home.boot()
    came, lost = home.arrive()
    assert (came, len(lost)) == ({}, 1)
    assert kept(home) == ["kept"]


def test_a_box_that_cannot_be_let_go_of_takes_no_other_with_it(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        home.box(name, x=name.encode())
    home.publish()
    home.boot()

    def rename(path: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "rename", rename)
    assert home.arrive() == ({"a/x": b"a", "b/x": b"b", "c/x": b"c"}, [])
    assert "has come, and cannot be let go of" in caplog.text


def test_what_no_index_names_is_removed_when_all_has_come(home: Home) -> None:
    home.box("a", x=b"never sealed")
    (home.carrier.own / "fdbox-x.image.new").write_bytes(b"half")
    (home.carrier.own / "fdbox-y.kept").write_bytes(b"somebody may still want it")
    home.boot()
    assert home.arrive() == ({}, [])
    assert home.files() == ["fdbox-y.kept"]


def test_nothing_is_removed_while_an_index_cannot_be_read(home: Home) -> None:
    home.box("a", x=b"one")
    home.publish()
    (home.carrier.own / "index").write_bytes(b"of another version")
    (home.directory / "another").mkdir()
    (home.directory / "another" / "fdbox-x.image").write_bytes(b"named by whatever that index is")
    before = home.files()
    home.boot()
    came, lost = home.arrive()
    assert (came, len(lost)) == ({}, 1)
    assert home.files() == before


def test_a_file_where_the_folder_should_be_is_told(home: Home) -> None:
    home.directory.write_text("no folder")
    carriage = home.carrier.carriage()
    assert carriage.carrier is None
    assert "Not a directory" in carriage.obstacle
    assert home.carrier.claim(has_past=True) is None
    with pytest.raises(KernelError, match="cannot look into"):
        home.carrier.indexes()


def test_an_index_that_is_a_folder_is_an_error_and_no_accident(home: Home) -> None:
    home.box("a", x=b"one")
    home.publish()
    index = home.carrier.own / "index"
    index.unlink()
    index.mkdir()
    home.boot()
    came, (lost,) = home.arrive()
    assert not came
    assert "the index of what came" in lost
    assert index.exists()


def test_a_damaged_image_takes_nothing_of_the_kernels_with_it(tmp_path: Path) -> None:
    kernel, luo = FakeKernel(free=seal.RESERVE + 3 * MIB), FakeCarrier()
    both = KernelAndImage(luo, ImageCarrier(tmp_path / "images", kernel))
    with memory(b"7" * MIB, 64 * MIB) as small, memory(b"8" * (4 * MIB), 64 * MIB) as large:
        entries = {
            name: (fd.fileno(), Description("memfd", 64 * MIB, name))
            for name, fd in {"small": small, "large": large}.items()
        }
        sealed = seal.seal(BoxKey(0, "b"), entries, both, kernel)
        assert [load.carrier for load in sealed.loads] == ["kernel", "image"]
        index = seal.write_index([sealed], both, kernel)
        luo.cross(kernel)
        assert index is not None
        index.release()
        sealed.end()
        (path,) = (tmp_path / "images").rglob("*.image")
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 1
        path.write_bytes(raw)
        came: dict[str, Arrived] = {}
        lost: list[Loss] = []
        for step in arrive.arrive(both, kernel, arrive.Past()):
            if isinstance(step, arrive.BoxCame):
                came |= step.entries
                lost += step.losses
        assert list(came) == ["small"]
        assert os.pread(came["small"].fd.fileno(), 10, 0) == b"7" * 10
        assert [loss.entry for loss in lost] == ["large"]
        assert [one.suffix for one in (tmp_path / "images").rglob("*") if one.is_file()] == [
            ".kept"
        ]
        close_all(one.fd for one in came.values())
        both.close()
        luo.switch_off()


def test_an_unreadable_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    home = Home(tmp_path / "images")
    home.box("a", x=b"one")
    monkeypatch.setattr(Path, "is_dir", denied)
    carriage = home.carrier.carriage()
    assert carriage.carrier is None
    assert "Permission denied" in carriage.obstacle
    with pytest.raises(FdboxError, match="Permission denied"):
        home.carrier.indexes()
    monkeypatch.undo()
    home.end()
