from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from fdbox.linux import peer

if TYPE_CHECKING:
    from pathlib import Path


def answer(listener: socket.socket, reply: bytes) -> int:
    """Return the number of a child that takes one connection, and answers."""
    child = os.fork()
    if child:
        return child
    try:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.sendall(reply)
    finally:
        os._exit(0)


def asked(path: Path, reply: bytes) -> tuple[int, peer.Credentials]:
    """Return the child that answers at a socket at which this process listens, and who is said to answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        child = answer(listener, reply)
        try:
            return child, peer.answerer(path, b"who?")
        finally:
            os.waitpid(child, 0)


def test_who_answers_is_not_who_began_to_listen(socket_path: Path) -> None:
    child, who = asked(socket_path, b"I")
    assert who == peer.Credentials(child, os.getuid(), os.getgid())


def test_who_hangs_up_has_not_answered(socket_path: Path) -> None:
    with pytest.raises(ConnectionResetError, match="does not answer"):
        asked(socket_path, b"")


def test_nobody_answers_where_nobody_listens(socket_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        peer.answerer(socket_path, b"who?")
