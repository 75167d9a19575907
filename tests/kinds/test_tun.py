from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry
from fdbox.linux import tun
from fdbox.linux.fd import open_path
from fdbox.linux.tun import Interface
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.kinds.conformance import World

TUN, TAP, NO_PI, VNET_HDR = 0x1, 0x2, 0x1000, 0x4000


def opened(*wanted: Interface) -> Callable[[Path], Entries]:
    def make(folder: Path) -> Entries:
        fd = open_path(tun.PATH, os.O_RDWR | os.O_NONBLOCK)
        for one in wanted:
            tun.attach(fd.fileno(), one)
        return {"tun": fd}

    return make


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    fd = fds["tun"]
    found = tun.inspect(fd)
    return [fcntl.fcntl(fd, fcntl.F_GETFL), None if found is None else list(found)]


def sample(name: str, *wanted: Interface) -> Sample:
    lost = ("addresses, routes",) if wanted else ()
    return Sample(f"tun {name}", {"tun": "tun"}, opened(*wanted), observe, lost=lost, root=True)


SAMPLES = [
    sample("without an interface"),
    sample("of IP packets", Interface("fdboxtun0", TUN | NO_PI, 70000, 10, tun.NOBODY, tun.NOBODY)),
    sample("of Ethernet", Interface("fdboxtap0", TAP | VNET_HDR, 1 << 20, 12, 1234, 4321)),
]


@pytest.mark.root
def test_an_interface_that_somebody_has_is_named(world: World) -> None:
    world.jump(SAMPLES[1], world.make(SAMPLES[1]))
    thief = opened(Interface("fdboxtun0", TUN, 1 << 20, 10, tun.NOBODY, tun.NOBODY))(world.folder)
    world.made.append(thief)
    entries, (loss,) = world.arrive()
    assert entries == {}
    assert "cannot make the interface 'fdboxtun0' again" in loss.reason


@pytest.mark.root
def test_an_interface_whose_name_is_no_text_is_refused(world: World) -> None:
    entries = opened()(world.folder)
    world.made.append(entries)
    request = struct.pack("=16sh22x", b"fdbox\xff", TUN | NO_PI)
    fcntl.ioctl(entries["tun"].fileno(), 0x400454CA, request)  # TUNSETIFF
    with pytest.raises(CannotCarry, match="no UTF-8") as caught:
        world.seal(entries)
    assert caught.value.context["entry"] == "tun"
