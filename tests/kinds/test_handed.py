"""What only the kernel can carry. No kernel does yet: /dev/kvm stands for all of them, where it is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdbox.errors import CannotCarry
from fdbox.kinds import registry
from fdbox.kinds.handed import KINDS
from fdbox.kinds.look import Look, look
from fdbox.linux.fd import OwnedFd, open_path
from fdbox.model import Carriage
from tests.fakes.carrier import FakeCarrier
from tests.kinds.conformance import World, kinds_of
from tests.kinds.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator

KVM = Path("/dev/kvm")
LINKS = {
    "/dev/vfio/7": "vfio",
    "anon_inode:[vfio-device]": "vfio",
    "/dev/iommu": "iommufd",
    "/dev/kvm": "kvm",
    "anon_inode:kvm-vm": "kvm",
    "anon_inode:kvm-vcpu:3": "kvm",
    "/[kvm-gmem] (deleted)": "guest-memfd",
    "anon_inode:[luo_session] name": "luo-session",
}
SAMPLE = Sample(
    "kvm",
    {"kvm": "kvm"},
    lambda folder: {"kvm": open_path(KVM, os.O_RDWR)},
    lambda fds, folder: os.fstat(fds["kvm"]).st_rdev,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, FakeCarrier(probed={"kvm": Carriage("kernel")}))
    yield made
    made.close()


@pytest.mark.parametrize("link", LINKS)
def test_links_say_what_it_is(link: str) -> None:
    with OwnedFd(os.eventfd(0)) as fd:
        seen = look(fd.fileno())._replace(link=link)
    assert [kind.name for kind in KINDS if kind.recognise(seen)] == [LINKS[link]]


needs_kvm = pytest.mark.skipif(not KVM.exists(), reason="there is no /dev/kvm")


@needs_kvm
@pytest.mark.root
def test_what_the_kernel_takes_crosses_as_it_is(world: World) -> None:
    expected = world.expected(SAMPLE)
    entries = world.make(SAMPLE)
    assert kinds_of(entries["kvm"].fileno()) == ["kvm"]
    sealed = world.seal(entries)
    sealed.verify()
    sealed.thaw()
    world.jump(SAMPLE, entries)
    arrived, losses = world.arrive()
    assert losses == []
    assert world.observe(SAMPLE, arrived) == expected


@needs_kvm
@pytest.mark.root
def test_what_the_kernel_does_not_take_is_refused_with_its_reason(tmp_path: Path) -> None:
    world = World(tmp_path)
    entries = world.make(SAMPLE)
    try:
        with pytest.raises(CannotCarry, match=r"'kvm'.*is a kvm: the fake does not take it"):
            world.seal(entries)
    finally:
        world.close()


def test_what_cannot_be_looked_at_is_not_promised() -> None:
    assert registry.CARRIED["vfio"].carriage(None, FakeCarrier()).carrier is None


def test_an_o_path_descriptor_of_a_device_is_none(tmp_path: Path) -> None:
    with OwnedFd(os.open(tmp_path, os.O_PATH)) as fd:
        seen: Look = look(fd.fileno())._replace(link="/dev/kvm")
    assert not any(kind.recognise(seen) for kind in KINDS)
