"""A daemon in this process, a client of it, and what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.linux import memfd
from tests.fakes.carrier import FakeCarrier, FakeKernel
from tests.service.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fdbox.linux.fd import OwnedFd


@pytest.fixture
def daemon(socket_path: Path) -> Iterator[Daemon]:
    carrier = FakeCarrier()
    made = Daemon(socket_path, carrier, FakeKernel())
    yield made
    made.stop()
    carrier.switch_off()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[fdbox.Client]:
    with fdbox.connect(daemon.socket) as connected:
        yield connected


@pytest.fixture
def memory() -> Iterator[OwnedFd]:
    with memfd.create("m", 4096) as fd:
        yield fd


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "kernel"
    path.touch()
    with path.open("rb") as file:
        yield file.fileno()
