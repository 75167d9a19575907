"""Names whose bytes are no UTF-8: any user can give one to a file, and none may stand in the way of an update."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, open_path
from tests.kinds.conformance import described
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.kinds.conformance import World

NAME = os.fsdecode(b"\xff\xfe")


def regular(path: Path) -> OwnedFd:
    return open_path(path, os.O_RDWR | os.O_CREAT)


def removed(path: Path) -> OwnedFd:
    made = regular(path)
    path.unlink()
    return made


def directory(path: Path) -> OwnedFd:
    path.mkdir()
    return open_path(path, os.O_RDONLY)


def fifo(path: Path) -> OwnedFd:
    os.mkfifo(path)
    return open_path(path, os.O_RDWR)


def o_path(path: Path) -> OwnedFd:
    path.touch()
    return open_path(path, os.O_PATH)


def unix(path: Path) -> OwnedFd:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(os.fsencode(path))
        return OwnedFd(made.detach())


def seen(fds: Mapping[str, int], _: Path) -> Any:  # noqa: ANN401 - JSON
    status = os.fstat(fds["it"])
    return [status.st_mode, status.st_size]


def sample(make: Callable[[Path], OwnedFd]) -> Sample:
    def entries(folder: Path) -> Entries:
        return {"it": make(folder / NAME)}

    return Sample(make.__name__, {"it": ""}, entries, seen)


@pytest.mark.parametrize("make", [regular, removed, directory, fifo, o_path, unix])
def test_it_crosses_and_is_told_as_text(make: Callable[[Path], OwnedFd], any_world: World) -> None:
    one = sample(make)
    expected = any_world.expected(one)
    entries = any_world.make(one)
    ((_, description),) = described(entries).values()
    assert "\ufffd\ufffd" in description.label
    any_world.jump(one, entries)
    arrived, losses = any_world.arrive()
    assert losses == []
    assert any_world.observe(one, arrived) == expected


@pytest.mark.parametrize("make", [directory, fifo, o_path])
def test_why_it_cannot_be_saved_is_told_as_text(
    make: Callable[[Path], OwnedFd], world: World
) -> None:
    entries = world.make(sample(make))
    path = world.folder / "own" / NAME
    if make is directory:
        path.rmdir()
    else:
        path.unlink()
    with pytest.raises(CannotCarry, match="does not lead to it") as caught:
        world.seal(entries)
    assert str(caught.value).encode()


@pytest.mark.parametrize("make", [regular, directory, fifo, o_path])
@pytest.mark.parametrize("replaced", [True, False])
def test_why_it_is_lost_is_told_as_text(
    make: Callable[[Path], OwnedFd], replaced: bool, world: World
) -> None:
    one = sample(make)
    world.jump(one, world.make(one))
    path = world.folder / "own" / NAME
    path.rename(path.with_name("elsewhere"))
    if replaced:
        make(path).close()
    _, (loss,) = world.arrive()
    assert "\ufffd\ufffd" in loss.reason
    assert loss.reason.encode()


@pytest.mark.root
def test_an_extended_attribute_keeps_the_bytes_of_its_name(any_world: World) -> None:
    def make(_: Path) -> Entries:
        made = memfd.create("m")
        os.setxattr(made.fileno(), f"trusted.{NAME}", b"value")
        return {"it": made}

    one = Sample("memfd", {"it": "memfd"}, make, seen)
    any_world.jump(one, any_world.make(one))
    arrived, losses = any_world.arrive()
    assert losses == []
    assert os.getxattr(arrived["it"].fileno(), f"trusted.{NAME}") == b"value"
