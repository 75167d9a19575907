"""Which box is copied for a rehearsal; tests/vm/test_rehearsal.py rehearses."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.cli.rehearsal import copy_a_box
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root  # only root may export


@pytest.fixture
def client(daemon_process: subprocess.Popen[str], socket_path: Path) -> Iterator[fdbox.Client]:
    with fdbox.connect(socket_path) as connected:
        yield connected


def put(client: fdbox.Client, box: str, size: int) -> None:
    with memfd.create("m", size) as memory:
        client.box(box).put("memory", memory)


def test_the_smallest_that_can_be_copied(client: fdbox.Client, tmp_path: Path) -> None:
    put(client, "larger", 2 << 20)
    put(client, "smaller", 1 << 20)
    put(client, "sealed", 1 << 10)
    client.box("sealed").seal()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client.box("network").put("listener", listener)
    with (tmp_path / "file").open("wb") as file:
        client.box("here").put("file", file)
    client.box("empty")
    said: list[str] = []
    copy = copy_a_box(client, said.append)
    assert copy is not None
    assert copy.entries == ("memory",)
    assert copy.file
    assert "box smaller of user 0 is copied" in said[-1]


def test_a_large_one_is_not_copied(client: fdbox.Client) -> None:
    put(client, "large", (64 << 20) + 1)
    said: list[str] = []
    assert copy_a_box(client, said.append) is None
    assert said == []


def test_a_copy_leaves_the_box_as_it_is(client: fdbox.Client) -> None:
    with OwnedFd(os.eventfd(5)) as counter:
        client.box("mine").put("counter", counter)
        assert copy_a_box(client, print) is not None
        assert os.eventfd_read(counter.fileno()) == 5
    assert [box.state for box in client.boxes()] == ["open"]
