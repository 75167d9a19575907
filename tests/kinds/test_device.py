from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry
from fdbox.linux.fd import OwnedFd, open_path
from tests.kinds.conformance import World, kinds_of
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

FLAGS = {
    "null": os.O_RDWR,
    "zero": os.O_RDONLY | os.O_NONBLOCK,
    "full": os.O_WRONLY,
    "random": os.O_RDONLY,
    "urandom": os.O_RDONLY,
}


def opened(name: str) -> Callable[[Path], Entries]:
    return lambda folder: {"device": open_path(f"/dev/{name}", FLAGS[name])}


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    fd = fds["device"]
    return [
        os.readlink(f"/proc/self/fd/{fd}"),
        os.fstat(fd).st_rdev,
        fcntl.fcntl(fd, fcntl.F_GETFL),
    ]


SAMPLES = [Sample(f"device {name}", {"device": "device"}, opened(name), observe) for name in FLAGS]


def tty() -> OwnedFd:
    ours, theirs = os.openpty()
    os.close(theirs)
    return OwnedFd(ours)


REFUSED: dict[str, Callable[[], OwnedFd]] = {
    "terminal": tty,
    "character-device": lambda: open_path("/dev/kmsg", os.O_RDONLY),
}


@pytest.mark.root
@pytest.mark.parametrize("kind", REFUSED)
def test_a_device_with_state_is_refused(world: World, kind: str) -> None:
    entries = {"it": REFUSED[kind]()}
    world.made.append(entries)
    assert kinds_of(entries["it"].fileno()) == [kind]
    with pytest.raises(CannotCarry, match=f"'it'.*{kind}"):
        world.seal(entries)
