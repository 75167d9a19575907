"""Sealing and updating without a Live Update Orchestrator, through the whole daemon."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.handover.carriers import imagefolder
from fdbox.handover.carriers.choice import KernelAndImage
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.linux import files, memfd
from fdbox.linux.fd import OwnedFd
from fdbox.nextkernel.verdict import Effect, Problem
from tests.fakes.carrier import SECOND, FakeCarrier, FakeKernel
from tests.service.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fdbox.varlink import interface

MIB = 1 << 20
LOST = Problem("LIVEUPDATE", "writes luo-v5", "is built without it", Effect.LOST, "take another")
PANICS = Problem("LUO format", "writes luo-v5", "accepts luo-v4", Effect.PANICS, "take another")


@dataclass
class Machine:
    """A machine that can be booted anew; its disk stays."""

    disk: Path
    socket: Path
    luo: FakeCarrier
    kernel: FakeKernel
    daemon: Daemon | None = None

    def start(self) -> fdbox.Client:
        images = ImageCarrier(self.disk, self.kernel)
        carrier = KernelAndImage(self.luo, images)
        self.daemon = Daemon(self.socket, carrier, self.kernel, reports=self.disk)
        return fdbox.connect(self.socket)

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()
            self.daemon = None

    def reboot(self) -> fdbox.Client:
        """Start another kernel, of which nothing but the disk knows."""
        self.stop()
        self.kernel.running = SECOND
        return self.start()

    def images(self) -> list[Path]:
        return sorted(path for path in self.disk.rglob("*") if path.suffix == ".image")


@pytest.fixture
def machine(tmp_path: Path, socket_path: Path) -> Iterator[Machine]:
    luo = FakeCarrier(obstacle="there is none")
    made = Machine(tmp_path / "disk", socket_path, luo, FakeKernel())
    yield made
    made.stop()
    luo.switch_off()


def update(
    client: fdbox.Client, kernel: OwnedFd | None, **options: object
) -> tuple[list[interface.UpdateReply], fdbox.FdboxError | None]:
    steps: list[interface.UpdateReply] = []
    try:
        steps.extend(client.update(kernel, None, "quiet", **options))  # type: ignore[arg-type]
    except fdbox.FdboxError as error:
        return steps, error
    return steps, None


def fill(client: fdbox.Client) -> None:
    with memfd.create("m", 2 * MIB) as fd:
        os.pwrite(fd.fileno(), b"what matters", MIB)
        client.box("cache").put("m", fd)
    with OwnedFd(os.eventfd(7)) as fd:
        client.box("cache").put("count", fd)


def check_filled(client: fdbox.Client) -> None:
    with client.box("cache").get("m") as fd:
        assert os.pread(fd.fileno(), 12, MIB) == b"what matters"
        assert os.fstat(fd.fileno()).st_size == 2 * MIB
    with client.box("cache").get("count") as fd:
        assert os.eventfd_read(fd.fileno()) == 7


def test_a_sealed_box_arrives_after_a_reboot(machine: Machine) -> None:
    with machine.start() as client:
        fill(client)
        assert [entry.carrier for entry in client.box("cache").list()] == ["image", "image"]
        client.box("cache").seal()
        assert len(machine.images()) == 1
    with machine.reboot() as client:
        check_filled(client)
        assert client.status().arrived == 2
        assert not client.status().lost
    assert not machine.images()


def test_unsealing_takes_the_image_away(machine: Machine) -> None:
    with machine.start() as client:
        fill(client)
        client.box("cache").seal()
        client.box("cache").unseal()
        assert not machine.images()
    with machine.reboot() as client:
        assert not client.boxes()


@pytest.mark.root
def test_an_update_without_live_update_goes_by_images(machine: Machine) -> None:
    machine.kernel.problems = (LOST,)  # what the kernel could not take does not matter
    with machine.start() as client, memfd.create("kernel") as kernel:
        fill(client)
        steps, error = update(client, kernel)
        assert "a test cannot jump" in str(error)
        loads = [(load.box, load.carrier, load.entries) for load in steps[-1].loads]
        assert loads == [("cache", "image", 2)]
        assert not machine.images()
        assert [box.state for box in client.boxes()] == ["open"]


def jump(machine: Machine) -> None:
    """Fill a box and update; the machine ends at the jump."""
    left = machine.disk.with_name("left")

    def leave() -> None:
        shutil.copytree(machine.disk, left)

    machine.kernel.on_jump = leave
    with machine.start() as client, memfd.create("kernel") as kernel:
        fill(client)
        update(client, kernel)
        assert "a test cannot jump" in (client.last_update().failure or "")
    machine.stop()
    shutil.rmtree(machine.disk)
    left.rename(machine.disk)


@pytest.mark.root
def test_what_left_is_compared_with_what_arrives(machine: Machine) -> None:
    jump(machine)
    with machine.reboot() as client:
        check_filled(client)
        last = client.last_update()
        assert [(one.box, [entry.name for entry in one.entries]) for one in last.boxes] == [
            ("cache", ["m", "count"])
        ]
        assert last.arrived is not None
        assert last.failure is None
        assert last.missing == []
        phases = ["loading", "sealing", "committing", "leaving"]
        assert sorted(last.phases, key=last.phases.__getitem__) == phases
        assert last.phases["leaving"] < last.arrived


@pytest.mark.root
def test_what_does_not_arrive_is_named(machine: Machine) -> None:
    jump(machine)
    for path in machine.images():
        path.unlink()
    with machine.reboot() as client:
        last = client.last_update()
        assert {(one.box, one.entry) for one in last.missing} == {
            ("cache", "m"),
            ("cache", "count"),
        }


@pytest.mark.root
@pytest.mark.parametrize("damaged", [False, True])
def test_a_box_of_the_same_name_from_before_does_not_count(machine: Machine, damaged: bool) -> None:
    """A daemon that has ended has left a box; one that was made later is what the update takes."""
    with machine.start() as client, memfd.create("before") as fd:
        client.box("cache").put("m", fd)
        client.box("cache").seal()
    machine.stop()
    (old,) = machine.images()
    jump(machine)
    if damaged:
        (new,) = [path for path in machine.images() if path.name != old.name]
        new.unlink()
    with machine.reboot() as client:
        came = [box.name for box in client.boxes()]
        assert sorted(came) == (["cache"] if damaged else ["cache", "cache.2"])
        missing = {(one.box, one.entry) for one in client.last_update().missing}
        assert missing == ({("cache", "m"), ("cache", "count")} if damaged else set())


@pytest.mark.root
@pytest.mark.parametrize("problem", [LOST, PANICS])
def test_an_unfit_kernel_is_refused_before_anything_happens(
    machine: Machine, problem: Problem
) -> None:
    machine.luo.obstacle = None
    machine.kernel.problems = (problem,)
    with machine.start() as client, memfd.create("kernel") as kernel:
        fill(client)
        with client.subscribe("program"):
            steps, error = update(client, kernel)
            assert isinstance(error, fdbox.NextKernelUnfit)
            assert problem.running in error.message
            assert problem.next in error.message
            assert ("--carrier image" in error.remedy) == (problem is LOST)
            assert {step.phase for step in steps} <= {"loading", "undoing"}
            assert machine.kernel.calls == []
            assert [box.state for box in client.boxes()] == ["open"]

        assert "NextKernelUnfit" in type(error).wire_name


@pytest.mark.root
def test_force_goes_on_and_says_what_is_lost(machine: Machine) -> None:
    machine.luo.obstacle = None
    machine.kernel.problems = (LOST,)
    with machine.start() as client, memfd.create("kernel") as kernel:
        fill(client)
        steps, error = update(client, kernel, force=True)
        assert "a test cannot jump" in str(error)
        assert "everything in boxes is lost" in steps[-1].warnings[0]


@pytest.mark.root
def test_images_alone_can_be_asked_for(machine: Machine) -> None:
    machine.luo.obstacle = None
    machine.kernel.problems = (LOST,)
    with machine.start() as client, memfd.create("kernel") as kernel:
        fill(client)
        client.box("by hand").put("x", kernel)
        client.box("by hand").seal()
        assert not machine.images()
        steps, error = update(client, kernel, images_only=True)
        assert "a test cannot jump" in str(error)
        assert {(load.box, load.carrier) for load in steps[-1].loads} == {
            ("by hand", "image"),
            ("cache", "image"),
        }
        states = {box.name: box.state for box in client.boxes()}
        assert states == {"by hand": "sealed", "cache": "open"}
        client.box("by hand").unseal()
        assert not machine.images()


@pytest.mark.root
def test_a_reboot_needs_images(machine: Machine) -> None:
    machine.luo.obstacle = None
    with machine.start() as client:
        fill(client)
        assert isinstance(update(client, None)[1], fdbox.UsageError)
        _, error = update(client, None, images_only=True)
        assert "a test cannot reboot" in str(error)
        assert machine.kernel.calls == ["reboot"]


@pytest.mark.root
def test_a_dry_run_says_what_takes_what(machine: Machine) -> None:
    with machine.start() as client, memfd.create("kernel") as kernel:
        fill(client)
        steps, error = update(client, kernel, dry_run=True)
        assert error is None
        assert steps[-1].phase == "checked"
        assert [(load.carrier, load.entries, load.bytes) for load in steps[-1].loads] == [
            ("image", 2, 2 * MIB)
        ]
        assert not machine.images()


@pytest.mark.root
def test_what_does_not_fit_into_memory_goes_by_image(machine: Machine) -> None:
    """A mostly empty memory would be filled by the kernel: it is copied, and there is no room for the copy."""
    machine.luo.obstacle = None
    with machine.start() as client:
        with memfd.create("sparse", 1 << 40) as sparse, memfd.create("dense", MIB) as dense:
            os.pwrite(sparse.fileno(), os.urandom(4 * MIB), 1 << 30)
            os.pwrite(dense.fileno(), os.urandom(MIB), 0)
            client.box("cache").put("sparse", sparse)
            client.box("cache").put("dense", dense)
            machine.kernel.free = (64 << 20) + MIB  # RESERVE, and not enough
            client.box("cache").seal()
            assert len(machine.images()) == 1
            assert machine.luo.outgoing
            machine.luo.cross(machine.kernel)
        machine.kernel.free = 1 << 40
        saved = [path.read_bytes() for path in machine.images()]
        (folder,) = {path.parent for path in machine.images()}
        names = [path.name for path in machine.images()]
        machine.stop()
        folder.mkdir(exist_ok=True)
        for name, content in zip(names, saved, strict=True):
            (folder / name).write_bytes(content)
        with machine.start() as again:
            with again.box("cache").get("sparse") as fd:
                assert os.fstat(fd.fileno()).st_size == 1 << 40
                assert memfd.data_extents(fd.fileno()) == [(1 << 30, 4 * MIB)]
            again.box("cache").get("dense").close()
            assert not again.status().lost
        assert not machine.images()


@pytest.mark.root
def test_a_write_after_the_seal_is_saved_too(machine: Machine) -> None:
    kept: list[bytes] = []
    with machine.start() as client, memfd.create("m", MIB) as fd, memfd.create("kernel") as kernel:
        client.box("cache").put("m", fd)

        def late() -> None:
            machine.kernel.on_sync = lambda: None
            os.pwrite(fd.fileno(), b"late" + os.urandom(4), 5)

        def at_jump() -> None:
            kept.extend(path.read_bytes() for path in machine.images())

        machine.kernel.on_sync, machine.kernel.on_jump = late, at_jump
        _, error = update(client, kernel)
        assert "a test cannot jump" in str(error)
        assert len(kept) == 1
        assert b"late" in kept[0]
        machine.kernel.on_sync = late
        _, error = update(client, kernel, on_late_write="abort")
        assert isinstance(error, fdbox.LateWrite)


@pytest.mark.root
def test_a_dry_run_says_what_it_took_back(machine: Machine) -> None:
    with machine.start() as client, memfd.create("kernel") as kernel:
        assert "taken back" in update(client, kernel, dry_run=True)[0][-1].detail
        again = update(client, None, dry_run=True, images_only=True)[0][-1].detail
        assert "taken back" not in again
        assert "nothing was sealed" in again


@pytest.mark.root
def test_a_dry_run_refuses_what_no_image_takes(machine: Machine) -> None:
    """The kernel would take it: with images alone that is of no use."""
    machine.luo.obstacle = None
    with machine.start() as client, memfd.create("kernel") as kernel:
        fill(client)
        shutil.rmtree(machine.disk, ignore_errors=True)
        machine.disk.touch()
        assert update(client, kernel, dry_run=True)[1] is None
        for dry_run in (True, False):
            _, error = update(client, None, images_only=True, dry_run=dry_run)
            assert isinstance(error, fdbox.CannotCarry)
            assert error.context["box"] == "cache"
            assert "no image can be written" in error.message
        machine.disk.unlink()


@pytest.mark.root
def test_a_dry_run_misses_what_is_in_no_entry(machine: Machine) -> None:
    one, other = socket.socketpair()
    with machine.start() as client, memfd.create("kernel") as kernel, one, other:
        client.box("half").put("one", one)
        for dry_run in (True, False):
            _, error = update(client, kernel, dry_run=dry_run)
            assert isinstance(error, fdbox.CannotCarry)
            assert (error.context["box"], error.context["entry"]) == ("half", "one")
        client.box("half").put("other", other)
        assert update(client, kernel, dry_run=True)[1] is None


@pytest.mark.root
def test_a_dry_run_sees_that_there_is_no_room(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine.start() as client, memfd.create("kernel") as kernel:
        for box in ("a", "b"):
            with memfd.create("m", 1 << 40) as fd:
                os.pwrite(fd.fileno(), os.urandom(MIB), 1 << 30)
                client.box(box).put("m", fd)
                client.box(box).put("again", fd)

        def expected(room: int) -> tuple[list[str], fdbox.FdboxError | None]:
            monkeypatch.setattr(files, "free_bytes", lambda _: imagefolder.RESERVE + room)
            steps, error = update(client, kernel, dry_run=True)
            return steps[-1].warnings, error

        assert expected(2 * MIB) == ([], None)
        warnings, error = expected(2 * MIB - 1)
        assert error is None
        assert f"up to {2 * MIB} bytes" in warnings[0]
        _, error = expected(MIB - 1)
        assert isinstance(error, fdbox.NoRoom)
        assert str(MIB) in error.message
        assert not machine.images()
        assert {box.state for box in client.boxes()} == {"open"}


@pytest.mark.root
def test_a_reboot_that_ends_the_daemon_undoes_nothing(machine: Machine) -> None:
    """systemd, which carries it out, sends SIGTERM to this service, too."""
    began = threading.Event()

    def reboot() -> None:
        began.set()
        assert machine.kernel.given_way.wait(20)

    machine.kernel.reboot = reboot  # type: ignore[method-assign]
    with machine.start() as client:
        fill(client)
        watching = threading.Thread(target=watch_reboot, args=(machine.socket,))
        watching.start()
        assert began.wait(20)
        machine.stop()
        watching.join(20)
    assert len(machine.images()) == 1
    with machine.reboot() as client:
        check_filled(client)
        last = client.last_update()
        assert (last.failure, last.missing) == (None, [])


def watch_reboot(socket: Path) -> None:
    """Ask for a reboot; the connection ends with the daemon."""
    with fdbox.connect(socket) as client, pytest.raises(fdbox.ConnectionLost):
        list(client.update(None, None, "", images_only=True))
