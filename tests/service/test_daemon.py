"""The whole daemon in this process, with real clients on a real socket; only the carrier and the kernel are fakes."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes.carrier import FakeCarrier, FakeKernel

import fdbox
from fdbox.errors import KernelError
from fdbox.linux import kcmp, memfd
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import BoxKey
from fdbox.service.config import Config, QuotaSettings
from fdbox.service.daemon import Service
from fdbox.service.update import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

CONFIG = Config(quota=QuotaSettings(boxes=3, entries=300, descriptors=300))


class Daemon:
    """A service on an event loop in a thread of its own."""

    def __init__(self, socket: Path, carrier: FakeCarrier, kernel: FakeKernel) -> None:
        self.socket, self.carrier, self.kernel = socket, carrier, kernel
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.service = self.run(self._start())

    async def _start(self) -> Service:
        service = Service(CONFIG, self.carrier, self.kernel)
        await service.start(self.socket)
        return service

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - what the work returns
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def stop(self) -> None:
        self.run(self.service.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def phase(self) -> Phase:
        phase: Phase = self.service.live.machine.phase
        return phase


@pytest.fixture
def daemon(socket_path: Path) -> Iterator[Daemon]:
    carrier = FakeCarrier()
    made = Daemon(socket_path, carrier, FakeKernel())
    yield made
    made.stop()
    carrier.close()


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


def test_a_box_gives_back_what_was_put(client: fdbox.Client, memory: OwnedFd) -> None:
    box = client.box("cache")
    entry = box.put("m", memory)
    assert (entry.kind, entry.size, entry.carrier) == ("memfd", 4096, "kernel")
    with box.get("m") as back:
        assert kcmp.same_file(back.fileno(), memory.fileno())
    os.ftruncate(memory.fileno(), 8192)
    assert box.list()[0].size == 8192, "the size is what it is now"
    with pytest.raises(fdbox.EntryExists):
        box.put("m", memory)
    with memfd.create("other") as other:
        box.put("m", other, replace=True)
        with box.get("m") as back:
            assert kcmp.same_file(back.fileno(), other.fileno())
    box.remove("m")
    assert box.list() == []
    box.delete()
    with pytest.raises(fdbox.BoxNotFound):
        box.list()


def test_253_descriptors_go_in_one_call(client: fdbox.Client, memory: OwnedFd) -> None:
    box = client.box("many")
    box.put_many({f"e{number}": memory for number in range(253)})
    found = box.get_many([f"e{number}" for number in range(253)])
    assert len(found) == 253
    close_all(found.values())
    with pytest.raises(fdbox.UsageError):
        box.put_many({f"f{number}": memory for number in range(254)})
    with pytest.raises(fdbox.QuotaExceeded) as caught:
        box.put_many({f"f{number}": memory for number in range(100)})
    assert caught.value.context["limit"] == 300


def test_box_quota(client: fdbox.Client) -> None:
    for name in "abc":
        client.box(name)
    with pytest.raises(fdbox.QuotaExceeded):
        client.box("d")


@pytest.mark.parametrize("name", ["a/b", "a\0b", "x" * 256, ""])
def test_bad_names(client: fdbox.Client, memory: OwnedFd, name: str) -> None:
    with pytest.raises(fdbox.InvalidName):
        client.box(name)
    with pytest.raises(fdbox.InvalidName):
        client.box("good").put(name, memory)


def test_a_closed_descriptor_is_refused(client: fdbox.Client) -> None:
    box = client.box("cache")
    with pytest.raises(fdbox.InvalidDescriptor):
        box.put("x", 987_654)


def test_what_nothing_carries_is_a_warning_at_put_and_an_error_at_seal(
    client: fdbox.Client, tmp_path: Path
) -> None:
    box = client.box("cache")
    reading, writing = os.pipe()
    entry = box.put("queue", reading)
    assert (entry.kind, entry.carrier) == ("pipe", None)
    assert entry.obstacle
    assert entry.remedy
    with (tmp_path / "file").open("wb") as file:
        assert box.put("file", file).kind == "regular-file"
    assert [one.kind for one in box.list()] == ["pipe", "regular-file"]
    with pytest.raises(fdbox.CannotCarry, match="'queue'") as caught:
        box.seal()
    assert caught.value.context["kind"] == "pipe"
    assert client.boxes()[0].state == "open"
    os.close(reading)
    os.close(writing)


def test_a_sealed_box_refuses_changes_and_says_so(client: fdbox.Client, memory: OwnedFd) -> None:
    box = client.box("cache")
    box.put("m", memory)
    assert box.seal().state == "sealed"
    for change in (
        lambda: box.put("n", memory),
        lambda: box.remove("m"),
        box.delete,
        box.seal,
    ):
        with pytest.raises(fdbox.BoxSealed, match="is sealed"):
            change()
    box.get("m").close()
    assert box.unseal().state == "open"
    with pytest.raises(fdbox.BoxNotSealed):
        box.unseal()
    box.remove("m")


def test_status_tells_what_the_machine_lacks(daemon: Daemon, client: fdbox.Client) -> None:
    assert client.status().carrier == "kernel"
    daemon.carrier.obstacle = "no device"
    status = client.status()
    assert (status.carrier, status.obstacle, status.remedy) == (
        None,
        "no device",
        "use another",
    )


@pytest.mark.root
def test_others_cannot_even_learn_that_a_box_exists(
    daemon: Daemon, client: fdbox.Client, memory: OwnedFd
) -> None:
    daemon.socket.parent.chmod(0o755)
    client.box("mine").put("m", memory)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(4711)
            with fdbox.connect(daemon.socket) as other:
                said = []
                for name in ("mine", "none"):
                    try:
                        other.existing_box(name, 0).get("m")
                    except fdbox.BoxNotFound as error:
                        said.append(str(error).replace(name, "?"))
                assert len(said) == 2
                assert said[0] == said[1]
                assert other.boxes() == []
                other.box("mine")
                try:
                    list(other.update(0, None, ""))
                except fdbox.PermissionDenied:
                    status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert [(box.name, box.owner) for box in client.boxes()] == [("mine", 0), ("mine", 4711)]
    assert client.existing_box("mine", 4711).list() == []


# --- updates ---------------------------------------------------------------------------------------------------------


def follow(client: fdbox.Client, image: int, **options: Any) -> tuple[list[str], Exception | None]:  # noqa: ANN401
    phases: list[str] = []
    try:
        for step in client.update(image, image, "quiet", **options):
            if step.phase not in phases[-1:]:
                phases.append(step.phase)
    except fdbox.FdboxError as error:
        return phases, error
    return phases, None


def check_as_before(daemon: Daemon, client: fdbox.Client) -> None:
    assert daemon.phase() is Phase.IDLE
    assert {box.state for box in client.boxes()} == {"open"}
    assert not daemon.carrier.outgoing
    assert daemon.kernel.calls[-1] == "unload"
    client.box("cache").get("m").close()


@pytest.fixture
def filled(client: fdbox.Client, memory: OwnedFd) -> fdbox.Client:
    client.box("cache").put("m", memory)
    client.box("other")
    return client


def test_an_update_loads_seals_and_jumps(daemon: Daemon, filled: fdbox.Client, image: int) -> None:
    phases, error = follow(filled, image)
    assert "a test cannot jump" in str(error)
    assert phases[0] == "loading"
    assert daemon.kernel.calls == ["load", "load", "jump", "unload"], (
        "loaded once more, last of all"
    )
    check_as_before(daemon, filled)


@pytest.mark.parametrize("step", ["load", "jump"])
def test_a_kernel_that_refuses_changes_nothing(
    daemon: Daemon, filled: fdbox.Client, image: int, step: str
) -> None:
    daemon.kernel.failing[step] = KernelError(f"{step} was to fail")
    _, error = follow(filled, image)
    assert isinstance(error, KernelError)
    assert step in error.message
    check_as_before(daemon, filled)


def test_an_entry_that_cannot_be_sealed_aborts(
    daemon: Daemon, filled: fdbox.Client, image: int
) -> None:
    reading, writing = os.pipe()
    filled.box("third").put("queue", reading)
    os.close(reading)
    os.close(writing)
    _, error = follow(filled, image)
    assert isinstance(error, fdbox.CannotCarry)
    assert "jump" not in daemon.kernel.calls
    check_as_before(daemon, filled)
    _, error = follow(filled, image, dry_run=True)
    assert isinstance(error, fdbox.CannotCarry)


def test_a_dry_run_touches_nobody(daemon: Daemon, filled: fdbox.Client, image: int) -> None:
    phases, error = follow(filled, image, dry_run=True)
    assert error is None
    assert phases[-1] == "checked"
    assert daemon.kernel.calls == ["load", "unload"]
    check_as_before(daemon, filled)


def begin(client: fdbox.Client, image: int, **options: Any) -> Callable[[], Exception | None]:  # noqa: ANN401
    result: list[Exception | None] = []
    thread = threading.Thread(target=lambda: result.append(follow(client, image, **options)[1]))
    thread.start()

    def wait() -> Exception | None:
        thread.join(20)
        return result[0]

    return wait


def test_subscribers_are_waited_for(daemon: Daemon, filled: fdbox.Client, image: int) -> None:
    with filled.subscribe("slow") as slow:
        events = iter(slow)
        end = begin(filled, image, timeout=30)
        event = next(events)
        assert event.event == "prepare"
        assert 0 < (event.timeout_seconds or 0) <= 30
        assert filled.status().waiting == ["slow"]
        assert daemon.kernel.calls == ["load"]
        filled.box("cache").remove("m")  # its last writing
        with memfd.create("fresh") as fresh:
            filled.box("cache").put("m", fresh)
        slow.ready()
        assert "a test cannot jump" in str(end())
        assert next(events).event == "aborted"
    check_as_before(daemon, filled)


def test_an_abort_while_preparing(daemon: Daemon, filled: fdbox.Client, image: int) -> None:
    with pytest.raises(fdbox.NoUpdate):
        filled.abort_update()
    with filled.subscribe("slow") as slow:
        events = iter(slow)
        end = begin(filled, image)
        next(events)
        with pytest.raises(fdbox.UpdateInProgress):
            list(filled.update(image, None, ""))
        filled.abort_update()
        assert isinstance(end(), fdbox.UpdateAborted)
        assert next(events).event == "aborted"
    assert "jump" not in daemon.kernel.calls
    check_as_before(daemon, filled)


def test_the_deadline(daemon: Daemon, filled: fdbox.Client, image: int) -> None:
    with filled.subscribe("slow"):
        _, error = follow(filled, image, timeout=0.05)
        assert isinstance(error, fdbox.UpdateAborted)
        assert "slow" in str(error)
        assert "jump" not in daemon.kernel.calls
        _, error = follow(filled, image, timeout=0.05, on_deadline="proceed")
        assert "jump" in daemon.kernel.calls
    check_as_before(daemon, filled)


def test_a_subscriber_that_goes_away_is_not_waited_for(
    daemon: Daemon, filled: fdbox.Client, image: int
) -> None:
    with filled.subscribe("gone") as gone:
        events = iter(gone)
        end = begin(filled, image, timeout=30)
        next(events)
    assert "a test cannot jump" in str(end())
    check_as_before(daemon, filled)


def test_nobody_watching_calls_it_off(daemon: Daemon, filled: fdbox.Client, image: int) -> None:
    with filled.subscribe("slow") as slow:
        events = iter(slow)
        steps = filled.update(image, None, "")
        next(steps)
        assert next(events).event == "prepare"
        steps.close()  # type: ignore[attr-defined]  # a generator; its connection is closed
        assert next(events).event == "aborted"
    assert "jump" not in daemon.kernel.calls


def test_no_change_is_taken_while_boxes_are_sealed(
    daemon: Daemon, filled: fdbox.Client, image: int, memory: OwnedFd
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    jump = daemon.kernel.jump

    def slow_jump() -> None:
        inside.set()
        assert go_on.wait(20)
        jump()

    daemon.kernel.jump = slow_jump  # type: ignore[method-assign]
    end = begin(filled, image)
    assert inside.wait(20)
    box = filled.existing_box("other")
    for change in (
        lambda: filled.box("new"),
        lambda: box.put("x", memory),
        lambda: box.remove("x"),
        box.delete,
        box.seal,
        box.unseal,
        filled.abort_update,
    ):
        with pytest.raises(fdbox.UpdateInProgress):
            change()
    filled.box("cache").get("m").close()
    go_on.set()
    assert end() is not None
    check_as_before(daemon, filled)


def test_what_its_owner_sealed_stays_sealed(
    daemon: Daemon, filled: fdbox.Client, image: int
) -> None:
    filled.existing_box("cache").seal()
    _, error = follow(filled, image)
    assert "a test cannot jump" in str(error)
    assert {box.name: box.state for box in filled.boxes()} == {"cache": "sealed", "other": "open"}
    filled.existing_box("cache").unseal()


def test_a_timeout_that_cannot_be(filled: fdbox.Client, image: int) -> None:
    _, error = follow(filled, image, timeout=-1)
    assert isinstance(error, fdbox.UsageError)


def test_boxes_arrive_and_losses_are_told(socket_path: Path) -> None:
    carrier, kernel = FakeCarrier(), FakeKernel()
    first = Daemon(socket_path, carrier, kernel)
    with fdbox.connect(socket_path) as client:
        box = client.box("cache")
        with box.memory("good", size=4096) as memory:
            memory[:4] = b"kept"
        with memfd.create("bad") as bad:
            box.put("bad", bad)
        box.seal()
    vault = first.service.vault
    sealed = vault._sealed.pop(BoxKey(os.getuid(), "cache"))
    vault._index = None
    carrier.cross(kernel)
    sealed.manifest.close()
    sealed.freight.close()
    first.stop()
    carrier.incoming[sealed.shipment.name].files.pop(2).close()
    second = Daemon(socket_path, carrier, kernel)
    with fdbox.connect(socket_path) as client:
        status = client.status()
        assert status.arrived == 1
        assert [(loss.box, loss.entry) for loss in status.lost] == [("cache", "bad")]
        with client.box("cache").memory("good") as memory:
            assert memory.recovered
            assert memory[:4] == b"kept"
        assert client.box("cache").list()[0].label == "good"
        client.box("cache").seal()
    second.stop()
    carrier.close()


def test_the_asynchronous_client_does_all_of_it(
    daemon: Daemon, memory: OwnedFd, image: int
) -> None:
    async def run() -> None:
        async with await fdbox.aio.connect(daemon.socket) as client:
            box = await client.box("cache")
            await box.put("m", memory)
            assert [(one.name, one.kind) for one in await box.list()] == [("m", "memfd")]
            assert (await box.seal()).state == "sealed"
            with pytest.raises(fdbox.BoxSealed):
                await box.remove("m")
            assert (await box.unseal()).state == "open"
            assert [one.name for one in await client.boxes()] == ["cache"]
            assert (await client.status()).entries == 1
            with pytest.raises(fdbox.NoUpdate):
                await client.abort_update()
            steps = [step async for step in client.update(image, None, "quiet", dry_run=True)]
            assert steps[-1].phase == "checked"
            await client.existing_box("cache").delete()
            with pytest.raises(fdbox.BoxNotFound):
                await box.list()
            with pytest.raises(fdbox.InvalidDescriptor):
                await (await client.box("cache")).put("closed", 987_654)

    asyncio.run(run())
