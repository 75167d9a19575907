from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from fdbox.linux import regular


def made(folder: Path, what: str) -> Path:
    """Return the path of something that is no regular file."""
    path = folder / "it"
    if what == "a directory":
        path.mkdir()
    elif what == "a FIFO":
        os.mkfifo(path)
    elif what == "a socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("what", ["a directory", "a FIFO", "a socket", "a device"])
def test_what_is_no_regular_file_is_named(socket_path: Path, what: str) -> None:
    path = made(socket_path.parent, what)
    for look in (regular.size, regular.open_to_read, lambda path: regular.read(path, 1)):
        with pytest.raises(OSError, match=f"it is {what}, not a regular file") as raised:
            look(path)
        assert (raised.value.errno, raised.value.filename) == (errno.EINVAL, str(path))


def test_a_file_that_becomes_a_fifo_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = made(tmp_path, "a FIFO")
    monkeypatch.setattr(regular, "size", lambda _: 1)
    with pytest.raises(OSError, match="it is a FIFO"):
        regular.open_to_read(fifo)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert regular.size(path) == 5
    with regular.open_to_read(path) as fd:
        assert os.get_blocking(fd.fileno())
    assert regular.read(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes") as raised:
        regular.read(path, 4)
    assert raised.value.errno == errno.EFBIG
    assert regular.read(Path("/proc/self/cmdline"), 1 << 20), "stat(2) says 0 bytes"
    with pytest.raises(FileNotFoundError):
        regular.open_to_read(tmp_path / "none")
