"""Live updates through the whole daemon, with real clients on a real socket; they are for root."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest

import fdbox
from fdbox.errors import KernelError
from fdbox.handover import arrive, seal
from fdbox.linux import memfd, pipe
from fdbox.linux.fd import open_path
from fdbox.service.update import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fdbox.linux.fd import OwnedFd
    from tests.service.daemon import Daemon

pytestmark = pytest.mark.root


def follow(client: fdbox.Client, image: int, **options: Any) -> tuple[list[str], Exception | None]:  # noqa: ANN401
    phases: list[str] = []
    try:
        for step in client.update(image, image, "quiet", **options):
            if step.phase not in phases[-1:]:
                phases.append(step.phase)
    except fdbox.FdboxError as error:
        return phases, error
    return phases, None


def check_as_before(daemon: Daemon, client: fdbox.Client, *, unloaded: bool = True) -> None:
    assert daemon.phase() is Phase.IDLE
    assert {box.state for box in client.boxes()} == {"open"}
    assert not daemon.carrier.outgoing
    assert (daemon.kernel.calls[-1] == "unload") == unloaded, "somebody else's stays"
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
    check_as_before(daemon, filled, unloaded=step != "load")


def test_an_entry_that_cannot_be_sealed_aborts(
    daemon: Daemon, filled: fdbox.Client, image: int
) -> None:
    with fdbox.OwnedFd(os.pidfd_open(os.getpid())) as process:
        filled.box("third").put("process", process)
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
    for timeout in (float("nan"), float("inf")):
        _, error = follow(filled, image, timeout=timeout)
        assert isinstance(error, fdbox.UsageError)
        assert f"a timeout of {timeout} s cannot be" in error.message
    _, error = follow(filled, image, timeout=-1)
    assert isinstance(error, fdbox.UsageError)


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


@pytest.fixture
def writer(filled: fdbox.Client) -> Iterator[OwnedFd]:
    """Return the end of a pipe of which the other one is in a box: nothing can stop who holds it."""
    reading, writing = pipe.create()
    with reading:
        filled.box("other").put("queue", reading)
    with writing:
        yield writing


def void(_: object) -> None:
    """Let a lambda have no value."""


def nothing() -> None:
    """Let nothing happen."""


def queued(daemon: Daemon) -> bytes:
    """Return what the next kernel would have got of the pipe."""
    daemon.carrier.cross(daemon.kernel)
    found = b""
    for step in arrive.arrive(daemon.carrier, daemon.kernel, arrive.Past()):
        if isinstance(step, arrive.BoxCame):
            for name, entry in step.entries.items():
                with entry.fd as fd:
                    found += os.read(fd.fileno(), 99) if name == "queue" else b""
    return found


def test_what_was_changed_after_it_was_saved_is_saved_again(
    daemon: Daemon, filled: fdbox.Client, image: int, writer: OwnedFd
) -> None:
    daemon.kernel.on_sync = lambda: void(os.write(writer.fileno(), b"late"))
    came: list[bytes] = []
    daemon.kernel.on_jump = lambda: came.append(queued(daemon))
    _, error = follow(filled, image)
    assert "a test cannot jump" in str(error)
    assert came == [b"late"]
    check_as_before(daemon, filled)


def test_a_late_write_aborts_where_that_was_asked_for(
    daemon: Daemon, filled: fdbox.Client, image: int, writer: OwnedFd
) -> None:
    daemon.kernel.on_sync = lambda: void(os.write(writer.fileno(), b"late"))
    _, error = follow(filled, image, on_late_write="abort")
    assert isinstance(error, fdbox.LateWrite)
    assert error.context["entry"] == "queue"
    assert error.context["box"] == "other"
    assert "jump" not in daemon.kernel.calls
    check_as_before(daemon, filled)


@pytest.mark.parametrize("sealed_before", [False, True])
def test_who_never_stops_writing_ends_the_update(
    daemon: Daemon, filled: fdbox.Client, image: int, writer: OwnedFd, sealed_before: bool
) -> None:
    if sealed_before:
        filled.box("other").seal()
    daemon.carrier.on_ship = lambda: void(os.write(writer.fileno(), b"!"))
    _, error = follow(filled, image)
    daemon.carrier.on_ship = nothing
    assert isinstance(error, fdbox.LateWrite)
    assert "jump" not in daemon.kernel.calls
    states = {box.name: box.state for box in filled.boxes()}
    assert states.pop("other") == ("sealed" if sealed_before else "open")
    assert set(states.values()) == {"open"}
    if sealed_before:
        filled.box("other").unseal()


def test_a_box_that_cannot_be_saved_again_is_open_afterwards(
    daemon: Daemon, filled: fdbox.Client, image: int, writer: OwnedFd
) -> None:
    filled.box("other").seal()

    def late() -> None:
        os.write(writer.fileno(), b"late")
        daemon.carrier.refuse_ship = daemon.carrier.begun + 1  # the first is the index

    daemon.kernel.on_sync = late
    _, error = follow(filled, image)
    assert isinstance(error, fdbox.KernelError)
    assert "begins no shipment" in error.message
    assert "jump" not in daemon.kernel.calls
    check_as_before(daemon, filled)


def test_a_file_whose_name_is_no_text_stops_nobody(
    daemon: Daemon, filled: fdbox.Client, image: int, tmp_path: Path
) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    with open_path(path, os.O_RDWR | os.O_CREAT) as file:
        filled.box("cache").put("f", file)
    labels = {entry.name: entry.label for entry in filled.box("cache").list()}
    assert labels["f"] == f"{tmp_path}/\ufffd"
    _, error = follow(filled, image)
    assert "a test cannot jump" in str(error)
    check_as_before(daemon, filled)


def test_boxes_are_open_again_even_if_what_was_saved_stays(
    daemon: Daemon,
    filled: fdbox.Client,
    image: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Why it was not sealed is told; what fails on the way back keeps no other box sealed."""
    filled.box("third")
    daemon.carrier.refuse_ship = daemon.carrier.begun + 2

    thaw = seal.SealedBox.thaw

    def refuse(box: seal.SealedBox) -> None:
        thaw(box)
        raise KernelError("the fake cannot remove it")

    with monkeypatch.context() as refusing:
        refusing.setattr(seal.SealedBox, "thaw", refuse)
        _, error = follow(filled, image)
    assert "begins no shipment" in str(error)
    assert daemon.phase() is Phase.IDLE
    assert {box.state for box in filled.boxes()} == {"open"}
    assert caplog.text.count("may still be there") == 2


def test_whatever_is_raised_fails_the_update(
    daemon: Daemon, filled: fdbox.Client, image: int, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.kernel.on_sync = lambda: void(struct.pack("I", -1))
    _, error = follow(filled, image)
    assert "leave the index for the next incarnation and jump: error: " in str(error)
    assert "Traceback" in caplog.text
    check_as_before(daemon, filled)


def test_only_what_goes_beyond_loading_is_an_update_to_tell_of(
    daemon: Daemon, filled: fdbox.Client, image: int
) -> None:
    _, error = follow(filled, image)
    assert filled.last_update().failure == str(error)
    daemon.kernel.failing["load"] = KernelError("it was to fail")
    for options in ({}, {"dry_run": True}):
        assert "it was to fail" in str(follow(filled, image, **options)[1])
        assert filled.last_update().failure == str(error)
