from __future__ import annotations

import errno
import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdbox.errors import KernelError
from fdbox.linux import fsuid, sock, sockdiag
from fdbox.linux.fd import close_all
from fdbox.linux.sockdiag import UnixSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET


@pytest.fixture(params=[STREAM, DGRAM, SEQPACKET])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair(socket.AF_UNIX, request.param)
    with one, two:
        yield one, two


def told(lent: socket.socket) -> UnixSocket:
    return sockdiag.unix_socket(os.fstat(lent.fileno()).st_ino)


def test_the_other_end_is_told_by_its_inode(pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair
    assert told(one).peer == os.fstat(two.fileno()).st_ino
    assert told(one).type == one.type
    two.close()
    assert told(one).peer == 0


def test_what_is_queued_is_charged_to_the_sender(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, two = pair
    one.send(b"abc")
    assert told(two).receiving == 3
    assert told(one).sending > 3
    two.recv(9)
    assert (told(two).receiving, told(one).sending) == (0, 0)


def test_a_listener_tells_its_backlog_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen(7)
        client.connect(str(path))
        status = path.stat()
        assert told(listener) == UnixSocket(
            STREAM, True, 0, 1, 7, 0, (status.st_dev, status.st_ino & 0xFFFFFFFF)
        )


def test_an_inode_that_is_no_unix_socket() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(KernelError) as caught:
            sockdiag.unix_socket(os.fstat(reading).st_ino)
        assert caught.value.errno == errno.ENOENT
    finally:
        os.close(reading)
        os.close(writing)


def test_peeking_takes_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = pair
    one.send(b"abc")
    socket.send_fds(one, [b"de"], [0, 1])
    one.send(b"f")
    for _ in range(2):
        offset = 3 if one.type != STREAM else 0
        sock.set_peek_offset(two, offset)
        piece = sock.peek(two, bytearray(100))
        assert (piece.size, len(piece.fds)) == (5 - offset, 2)
        assert not any(os.get_inheritable(fd.fileno()) for fd in piece.fds)
        close_all(piece.fds)
    assert sock.peek(two, bytearray(100)).size == 1
    with pytest.raises(BlockingIOError):
        sock.peek(two, bytearray(100))
    sock.set_peek_offset(two, -1)
    assert two.recv(3) == b"abc"


def test_a_message_larger_than_the_buffer_tells_its_size() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, DGRAM)
    with one, two:
        one.send(b"abcdef")
        buffer = bytearray(2)
        assert sock.peek(two, buffer).size == 6
        assert buffer == b"ab"


def test_the_sending_process_that_comes_along_is_closed() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, DGRAM)
    with one, two:
        two.setsockopt(socket.SOL_SOCKET, 76, 1)  # SO_PASSPIDFD
        one.send(b"abc")
        assert sock.peek(two, bytearray(9)) == (3, [])


@pytest.mark.parametrize("before", [b"", b"a", b"abc", b"x" * 70_000])
def test_where_the_buffer_with_descriptors_begins(before: bytes) -> None:
    one, two = socket.socketpair()
    with one, two:
        one.send(b"read")
        if before:
            one.send(before)
        socket.send_fds(one, [b"xyz"], [0])
        one.send(b"more")
        two.recv(4)
        piece = sock.peek(two, bytearray(1 << 20))
        close_all(piece.fds)
        assert piece.size == len(before) + 3
        assert sock.before_last(two, piece.size) == len(before)
        assert two.recv(piece.size, socket.MSG_WAITALL) == before + b"xyz"


def test_an_urgent_byte_is_seen() -> None:
    one, two = socket.socketpair()
    with one, two:
        one.send(b"a")
        assert not sock.has_urgent(two)
        one.send(b"!", socket.MSG_OOB)
        assert sock.has_urgent(two)


def test_a_filter_comes_back_as_it_was_attached() -> None:
    code = struct.pack("=HBBI", 0x06, 0, 0, 100) * 3  # BPF_RET
    with socket.socket(socket.AF_UNIX) as one:
        assert sock.filter_of(one) == b""
        sock.attach_filter(one, code)
        assert sock.filter_of(one) == code


@pytest.mark.parametrize("code", [b"", b"x" * 8, b"abc"])
def test_what_is_no_filter_is_refused(code: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match="Invalid argument"):
        sock.attach_filter(one, code)


@pytest.mark.root
def test_the_file_of_a_socket_is_found_when_it_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as one:
        assert sock.unix_file(one) is None
        one.bind(str(path))
        inode = path.stat().st_ino
        path.unlink()
        found = sock.unix_file(one)
        assert found is not None
        with found:
            assert os.fstat(found.fileno()).st_ino == inode


@pytest.mark.root
def test_files_belong_to_whom_we_act_as() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        folder.chmod(0o777)
        with fsuid.acting_as(1234):
            (folder / "theirs").touch()
            with pytest.raises(PermissionError):
                os.chown(folder / "theirs", 0, 0)
        (folder / "ours").touch()
        assert (folder / "theirs").stat().st_uid == 1234
        assert (folder / "ours").stat().st_uid == 0


def test_acting_as_oneself_changes_nothing() -> None:
    with fsuid.acting_as(os.geteuid()):
        assert os.geteuid() == os.getuid()
