from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from tests.fakes.carrier import FakeCarrier, FakeKernel

from fdbox.errors import (
    CannotCarry,
    FdboxError,
    KernelError,
    LateWrite,
    ManifestInvalid,
    NoRoom,
    SameIncarnation,
)
from fdbox.handover import arrive, manifest, seal
from fdbox.kinds import registry
from fdbox.kinds.freight import Arrivals, Made
from fdbox.kinds.look import look
from fdbox.linux import kcmp, memfd
from fdbox.linux.fd import OwnedFd, close_all, dup
from fdbox.linux.memfd import Seals
from fdbox.model import BoxKey, Description

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.ports import Carrier, Delivery, Kernel

BOX = BoxKey(1000, "cache")
MIB = 1 << 20


@dataclass
class Arrival:
    """Everything that came."""

    boxes: dict[BoxKey, dict[str, arrive.Arrived]] = field(default_factory=dict)
    losses: list[arrive.Loss] = field(default_factory=list)
    #: sessions that were not finished
    kept: dict[str, Delivery[OwnedFd]] = field(default_factory=dict)
    all_came: bool = False


def receive(carrier: Carrier[OwnedFd], kernel: Kernel) -> Arrival:
    """Do all that arrives, in one go."""
    arrival = Arrival()
    for step in arrive.arrive(carrier, kernel, arrive.Past()):
        match step:
            case arrive.Received():
                arrival.kept[step.session] = step.delivery
            case arrive.BoxCame():
                arrival.boxes[step.box] = step.entries
                arrival.losses += step.losses
            case arrive.Finished():
                del arrival.kept[step.session]
            case arrive.AllCame():
                arrival.all_came = True
            case arrive.Loss():
                arrival.losses.append(step)
    return arrival


@dataclass
class World:
    """A carrier, a kernel, and descriptors to seal."""

    carrier: FakeCarrier = field(default_factory=FakeCarrier)
    kernel: FakeKernel = field(default_factory=FakeKernel)
    owned: list[OwnedFd] = field(default_factory=list)
    entries: dict[str, tuple[int, Description]] = field(default_factory=dict)

    def put(self, name: str, fd: OwnedFd) -> int:
        self.owned.append(fd)
        seen = look(fd.fileno())
        self.entries[name] = (fd.fileno(), registry.recognise(seen).describe(seen))
        return fd.fileno()

    def seal(self) -> seal.SealedBox:
        return seal.seal(BOX, self.entries, self.carrier, self.kernel)

    def cross(self) -> Arrival:
        sealed = self.seal()
        index = seal.write_index([sealed], self.carrier, self.kernel)
        assert index is not None
        self.carrier.cross(self.kernel)
        sealed.freight.close()
        sealed.manifest.close()
        return receive(self.carrier, self.kernel)

    def close(self) -> None:
        close_all(self.owned)
        self.carrier.switch_off()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def memory(name: str, content: bytes, **options: bool) -> OwnedFd:
    fd = memfd.create(name, **options)
    os.pwrite(fd.fileno(), content, 0)
    return fd


def seen(fd: int) -> tuple[object, ...]:
    status = os.fstat(fd)
    with memfd.reopen(fd, os.O_RDONLY) as own:
        content = os.pread(own.fileno(), status.st_size, 0)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    position = os.lseek(fd, 0, os.SEEK_CUR)
    owner = (status.st_uid, status.st_gid)
    return status.st_mode, owner, content, memfd.get_seals(fd), flags, position


def close_arrival(arrival: Arrival) -> None:
    close_all(entry.fd for box in arrival.boxes.values() for entry in box.values())


def variants() -> Iterator[tuple[str, OwnedFd]]:
    yield "plain", memory("plain", b"bytes")
    yield "empty", memfd.create("empty")
    for flag in (Seals.SEAL, Seals.GROW, Seals.SHRINK, Seals.WRITE, Seals.FUTURE_WRITE):
        fd = memory(f"sealed {flag.name}", b"x" * 5000)
        memfd.add_seals(fd.fileno(), flag)
        yield f"seal {flag.name}", fd
    yield "noexec", memory("noexec", b"data", seal_exec=True)
    unsealable = memory("unsealable", b"data", allow_sealing=False)
    yield "unsealable", unsealable
    mode = memory("mode", b"m")
    os.fchmod(mode.fileno(), 0o640)
    os.lseek(mode.fileno(), 77, os.SEEK_SET)
    yield "mode and position", mode
    for name, flags in (
        ("read-only", os.O_RDONLY),
        ("write-only", os.O_WRONLY),
        ("append", os.O_RDWR | os.O_APPEND),
    ):
        with memory(name, b"abc") as original:
            fd = memfd.reopen(original.fileno(), flags)
        os.lseek(fd.fileno(), 2, os.SEEK_SET)
        yield name, fd
    sparse = memory("sparse", b"start")
    os.pwrite(sparse.fileno(), b"end", 8 * MIB)
    memfd.add_seals(sparse.fileno(), Seals.SHRINK)
    yield "sparse", sparse


def test_every_memory_arrives_as_it_left(world: World) -> None:
    for name, fd in variants():
        world.put(name, fd)
    before = {name: seen(fd) for name, (fd, _) in world.entries.items()}
    labels = {name: description.label for name, (_, description) in world.entries.items()}
    arrival = world.cross()
    arrived = arrival.boxes[BOX]
    assert not arrival.losses
    assert list(arrived) == list(before)
    assert {name: seen(entry.fd.fileno()) for name, entry in arrived.items()} == before
    assert {name: entry.label for name, entry in arrived.items()} == labels
    assert os.fstat(arrived["sparse"].fd.fileno()).st_blocks * 512 < MIB
    assert len(world.carrier.finished) == 2, "the index and the box"
    close_arrival(arrival)


def test_what_was_shared_stays_shared(world: World) -> None:
    fd = world.put("one", memory("m", b"abc"))
    world.put("same", OwnedFd(os.dup(fd)))
    world.put("again", memfd.reopen(fd, os.O_RDONLY))
    arrival = world.cross()
    arrived = {name: entry.fd.fileno() for name, entry in arrival.boxes[BOX].items()}
    assert kcmp.same_file(arrived["one"], arrived["same"])
    assert not kcmp.same_file(arrived["one"], arrived["again"])
    os.pwrite(arrived["one"], b"X", 0)
    assert os.pread(arrived["again"], 3, 0) == b"Xbc"
    close_arrival(arrival)


@pytest.mark.parametrize("refused", range(8))
def test_a_refusal_at_any_parcel_leaves_all_as_it_was(world: World, refused: int) -> None:
    for name in ("a", "b", "c"):
        world.put(name, memory(name, name.encode()))
    world.put("d", memory("d", b"d", seal_exec=True))
    before = {name: seen(fd) for name, (fd, _) in world.entries.items()}
    world.carrier.refuse = refused
    if refused < 6:
        with pytest.raises(CannotCarry, match="takes no more"):
            world.seal()
        assert not world.carrier.outgoing
    world.carrier.refuse = None
    sealed = world.seal()
    sealed.verify()
    sealed.thaw()
    assert not world.carrier.outgoing
    assert {name: seen(fd) for name, (fd, _) in world.entries.items()} == before


def test_the_refused_entry_is_named(world: World) -> None:
    world.put("first", memory("a", b"a"))
    world.put("second", memory("b", b"b"))
    world.carrier.refuse = 1
    with pytest.raises(CannotCarry, match="'second'"):
        world.seal()


def test_a_kind_that_nothing_carries_is_named(world: World) -> None:
    world.put("fine", memory("a", b"a"))
    world.put("process", OwnedFd(os.pidfd_open(os.getpid())))
    with pytest.raises(CannotCarry, match=r"'process'.*pidfd.*no process outlives") as caught:
        world.seal()
    assert caught.value.context["entry"] == "process"


def test_a_machine_without_a_carrier_says_what_it_lacks(world: World) -> None:
    world.put("a", memory("a", b"a"))
    world.carrier.obstacle = "no device"
    with pytest.raises(CannotCarry, match=r"no device.*use another"):
        world.seal()


def test_memory_that_has_no_room_is_named_and_nothing_taken(world: World) -> None:
    sparse = memory("sparse", b"x" * (2 * MIB))
    os.ftruncate(sparse.fileno(), 3 * MIB)
    world.put("big", sparse)
    world.kernel.free = seal.RESERVE + 1024
    with pytest.raises(NoRoom, match="'big'"):
        world.seal()
    assert os.fstat(sparse.fileno()).st_blocks * 512 == 2 * MIB


def test_a_late_write_into_a_copy_is_noticed(world: World) -> None:
    sparse = memory("sparse", b"begin")
    os.ftruncate(sparse.fileno(), 16 * MIB)
    fd = world.put("sparse", sparse)
    sealed = world.seal()
    sealed.verify()
    os.pwrite(fd, b"B", 0)
    with pytest.raises(LateWrite, match="'sparse' was changed"):
        sealed.verify()
    os.pwrite(fd, b"b", 0)
    sealed.verify()
    os.pwrite(fd, b"!", 12 * MIB)
    with pytest.raises(LateWrite, match="'sparse' was changed"):
        sealed.verify()
    sealed.thaw()


def test_a_late_seal_or_mode_is_noticed(world: World) -> None:
    fd = world.put("m", memory("m", b"abc"))
    sealed = world.seal()
    os.fchmod(fd, 0o700)
    with pytest.raises(LateWrite, match="'m' was changed"):
        sealed.verify()
    os.fchmod(fd, 0o777)
    memfd.add_seals(fd, Seals.GROW)
    with pytest.raises(LateWrite, match="'m' was changed"):
        sealed.verify()
    sealed.thaw()


def test_nothing_is_loaded_where_it_was_saved(world: World) -> None:
    world.put("m", memory("m", b"abc"))
    sealed = world.seal()
    with seal_index(world, sealed):
        boot = world.kernel.running
        world.carrier.cross(world.kernel)
        with pytest.raises(SameIncarnation):
            arrive.load_box(world.carrier.incoming[sealed.shipment.name], FakeKernel(boot))
        arrival = receive(world.carrier, FakeKernel(boot))
    assert not arrival.boxes
    assert "the kernel that runs now" in arrival.losses[0].reason
    sealed.thaw()


class seal_index:  # noqa: N801 - reads as a function
    def __init__(self, world: World, sealed: seal.SealedBox) -> None:
        self.index = seal.write_index([sealed], world.carrier, world.kernel)

    def __enter__(self) -> None:
        assert self.index is not None

    def __exit__(self, *_: object) -> None:
        assert self.index is not None
        self.index.discard()


def test_no_index_means_that_nothing_came() -> None:
    carrier, kernel = FakeCarrier(), FakeKernel()
    assert seal.write_index([], carrier, kernel) is None
    assert receive(carrier, kernel) == Arrival()


def damage(fd: int, at: int) -> None:
    (byte,) = os.pread(fd, 1, at)
    os.pwrite(fd, bytes([byte ^ 1]), at)


def jumped(world: World) -> tuple[seal.SealedBox, FakeCarrier]:
    sealed = world.seal()
    seal.write_index([sealed], world.carrier, world.kernel)
    world.carrier.cross(world.kernel)
    sealed.freight.close()
    sealed.manifest.close()
    return sealed, world.carrier


def test_a_flipped_bit_anywhere_in_the_manifest_loses_that_box_by_name(world: World) -> None:
    world.put("m", memory("m", b"abc"))
    sealed, carrier = jumped(world)
    stored = carrier.incoming[sealed.shipment.name].files[0].fileno()
    for at in range(os.fstat(stored).st_size):
        damage(stored, at)
        with pytest.raises(ManifestInvalid, match="damaged"):
            manifest.fetch(stored)
        damage(stored, at)
    damage(stored, 60)
    arrival = receive(carrier, world.kernel)
    assert [(loss.box, loss.entry) for loss in arrival.losses] == [(BOX, "")]
    assert len(arrival.kept) == 1, "its memory must not be freed"


def test_a_damaged_index_is_reported_and_kept(world: World) -> None:
    world.put("m", memory("m", b"abc"))
    _, carrier = jumped(world)
    damage(carrier.incoming[manifest.INDEX_SESSION].files[0].fileno(), 60)
    arrival = receive(carrier, world.kernel)
    assert arrival.losses[0].box is None
    assert len(arrival.kept) == 1


def test_a_box_that_did_not_come_is_named(world: World) -> None:
    world.put("m", memory("m", b"abc"))
    sealed, carrier = jumped(world)
    carrier.incoming.pop(sealed.shipment.name).release()
    arrival = receive(carrier, world.kernel)
    assert arrival.losses[0].box == BOX
    assert "did not come" in arrival.losses[0].reason


def test_a_box_that_cannot_be_asked_for_now_is_not_lost(world: World) -> None:
    world.put("m", memory("m", b"abc"))
    sealed, carrier = jumped(world)
    carrier.refuse_receive[sealed.shipment.name] = KernelError("busy")
    with pytest.raises(KernelError, match="busy"):
        receive(carrier, world.kernel)
    assert carrier.finished == [], "the next process finds all of it"
    carrier.refuse_receive.clear()
    (index,) = carrier.received
    session = dup(index.fileno())
    past = arrive.Past({manifest.INDEX_SESSION: session})
    came = [s for s in arrive.arrive(carrier, world.kernel, past) if isinstance(s, arrive.BoxCame)]
    assert [list(step.entries) for step in came] == [["m"]]
    close_all(entry.fd for step in came for entry in step.entries.values())


def test_a_lost_entry_takes_no_other_down(world: World) -> None:
    for name in ("a", "b", "c"):
        world.put(name, memory(name, name.encode()))
    sealed, carrier = jumped(world)
    carrier.incoming[sealed.shipment.name].files.pop(2).close()
    arrival = receive(carrier, world.kernel)
    assert [(loss.box, loss.entry) for loss in arrival.losses] == [(BOX, "b")]
    assert list(arrival.boxes[BOX]) == ["a", "c"]
    close_arrival(arrival)


def test_a_damaged_component_loses_its_entries_by_name(world: World) -> None:
    for name in ("a", "b"):
        world.put(name, memory(name, name.encode()))
    sealed, carrier = jumped(world)
    damage(carrier.incoming[sealed.shipment.name].files[3].fileno(), 50)
    arrival = receive(carrier, world.kernel)
    assert [loss.entry for loss in arrival.losses] == ["a", "b"]
    assert arrival.boxes[BOX] == {}


def test_a_foreign_version_is_named() -> None:
    tree = manifest.write_manifest(manifest.Manifest("other", BOX, (), ()))
    tree.set_text("compatible", "fdbox,manifest-v9")
    with pytest.raises(ManifestInvalid, match="fdbox,manifest-v9"):
        manifest.read_manifest(tree, "running")
    with pytest.raises(ManifestInvalid, match="fdbox,pipe-v7"):
        registry.by_compatible("fdbox,pipe-v7")


@pytest.mark.parametrize("missing", ["compatible", "incarnation", "box", "owner"])
def test_a_manifest_that_is_not_whole_is_refused(missing: str) -> None:
    tree = manifest.write_manifest(manifest.Manifest("other", BOX, (), ()))
    del tree.properties[missing]
    with pytest.raises(ManifestInvalid, match=missing):
        manifest.read_manifest(tree, "running")


def test_hostile_components_are_errors_and_nothing_else(world: World) -> None:
    world.put("m", memory("m", b"abc"))
    sparse = memory("s", b"x")
    os.ftruncate(sparse.fileno(), 4 * MIB)
    world.put("s", sparse)
    sealed, carrier = jumped(world)
    delivery = carrier.incoming[sealed.shipment.name]
    kind = registry.CARRIED["memfd"]
    with delivery.take(3) as stored:
        good = manifest.fetch(stored.fileno())
    refusals = 0
    for node in good.children:
        for key, value in list(node.properties.items()):
            for bad in (None, b"", b"\xff" * len(value), value + b"\0\0\0\0", bytes(len(value))):
                node.properties.pop(key)
                if bad is not None:
                    node.properties[key] = bad
                try:
                    for loaded in kind.load(good, Arrivals(world.kernel, delivery.take)):
                        if isinstance(loaded, Made):
                            loaded.fd.close()
                        else:
                            refusals += 1
                except FdboxError:
                    refusals += 1
                node.properties[key] = value
    assert refusals > 40
