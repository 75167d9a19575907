"""Files that take no other's place."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from fdbox.linux.newfile import NewFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: the file systems that there are: with files that have no name; with links; with neither (FAT)
WITH, LINKS, NEITHER = "O_TMPFILE", "links", "neither"


@pytest.fixture(params=[WITH, LINKS, NEITHER])
def filesystem(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have system calls refused as another file system would."""
    has: str = request.param
    opened, linked = os.open, os.link

    def open_(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if has != WITH and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opened(path, flags, mode, dir_fd=dir_fd)

    def link(source: str, name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if has == NEITHER:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        linked(source, name, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "link", link)
    return has


def test_it_has_its_name_when_it_is_kept(filesystem: str, tmp_path: Path) -> None:
    with NewFile(tmp_path / "f") as file:
        os.write(file.fileno(), b"all of it")
        assert not (tmp_path / "f").exists()
        assert bool(list(tmp_path.iterdir())) == (filesystem != WITH)
        file.keep()
        assert (tmp_path / "f").read_bytes() == b"all of it"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


@pytest.mark.usefixtures("filesystem")
def test_what_is_not_kept_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), NewFile(tmp_path / "f"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def other_file(path: Path) -> None:
    path.write_text("precious")


def link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.usefixtures("filesystem")
@pytest.mark.parametrize("appear", [other_file, link_to_nowhere, os.mkdir])
def test_what_is_there_stays(appear: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "f"
    appear(path)
    before = path.lstat()
    with pytest.raises(FileExistsError):
        NewFile(path)
    assert path.lstat() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("filesystem")
@pytest.mark.parametrize("appear", [other_file, link_to_nowhere, os.mkdir])
def test_what_appears_meanwhile_stays(appear: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "f"
    with NewFile(path) as file:
        appear(path)
        before = path.lstat()
        with pytest.raises(FileExistsError):
            file.keep()
    assert path.lstat() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("filesystem")
def test_a_name_can_be_as_long_as_any(tmp_path: Path) -> None:
    with NewFile(tmp_path / ("n" * 255)) as file:
        file.keep()
    with pytest.raises(OSError, match="too long"):
        NewFile(tmp_path / ("n" * 256))
    with pytest.raises(NotADirectoryError):
        NewFile(tmp_path / ("n" * 255) / "f")


def test_another_failure_of_link_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: str, **__: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", link)
    with NewFile(tmp_path / "f") as file, pytest.raises(OSError, match="Input/output"):
        file.keep()
    assert list(tmp_path.iterdir()) == []
