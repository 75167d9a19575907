"""The service killed, or its connection to the keeper cut, at every step of everything that it does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest

import fdbox
from fdbox.handover import seal
from fdbox.kinds import registry
from fdbox.kinds.look import look
from fdbox.linux import kcmp, memfd
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import BoxKey
from tests.fakes.carrier import FIRST, FakeKernel
from tests.fakes.sessions import SocketCarrier
from tests.processes import Faulty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: box -> its state, and entry -> which of the files
Model = dict[str, tuple[str, dict[str, str]]]
#: what there is before each operation: three entries, two of which are one open file
BEFORE: Model = {"a": ("open", {"x": "x", "y": "y", "twin": "y"})}
SEALED: Model = {"a": ("sealed", BEFORE["a"][1])}


def a(entries: Mapping[str, str]) -> Model:
    return {"a": ("open", dict(entries))}


class Files:
    """Memory that is told apart by its name."""

    def __init__(self) -> None:
        self.by_name = {name: memfd.create(f"f-{name}", 64) for name in ("x", "y", "z")}

    def __getitem__(self, name: str) -> int:
        return self.by_name[name].fileno()

    def name_of(self, fd: int) -> str:
        return next(n for n, one in self.by_name.items() if kcmp.same_file(one.fileno(), fd))


class Operation(NamedTuple):
    """What a client does, and what there is before and after it."""

    do: Callable[[fdbox.Client, fdbox.Box, Files], object]
    after: Model
    before: Model = BEFORE


def update(client: fdbox.Client, box: fdbox.Box, files: Files) -> None:
    with pytest.raises(fdbox.KernelError, match="a test cannot jump"):
        list(client.update(files["z"], None, ""))


def reexec(client: fdbox.Client, box: fdbox.Box, files: Files) -> None:
    client.reexec()
    client.status()


OPERATIONS = {
    "put": Operation(
        lambda _, box, files: box.put("z", files["z"]), a({**BEFORE["a"][1], "z": "z"})
    ),
    "put what is there": Operation(
        lambda _, box, files: box.put("z", files["x"]), a({**BEFORE["a"][1], "z": "x"})
    ),
    "replace": Operation(
        lambda _, box, files: box.put("x", files["z"], replace=True),
        a({**BEFORE["a"][1], "x": "z"}),
    ),
    "remove": Operation(lambda _, box, files: box.remove("x"), a({"y": "y", "twin": "y"})),
    "remove one of two": Operation(
        lambda _, box, files: box.remove("y"), a({"x": "x", "twin": "y"})
    ),
    "create": Operation(lambda client, _, files: client.box("b"), {**BEFORE, "b": ("open", {})}),
    "delete": Operation(lambda _, box, files: box.delete(), {}),
    "seal": Operation(lambda _, box, files: box.seal(), SEALED),
    "unseal": Operation(lambda _, box, files: box.unseal(), BEFORE, SEALED),
    "update": Operation(update, BEFORE),
    "reexec": Operation(reexec, BEFORE),
}


@pytest.fixture
def files() -> Iterator[Files]:
    made = Files()
    yield made
    close_all(made.by_name.values())


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    made = Faulty()
    yield made
    made.stop()


def found(client: fdbox.Client, files: Files) -> Model:
    model: Model = {}
    for one in client.boxes():
        names = [entry.name for entry in client.existing_box(one.name).list()]
        got = client.existing_box(one.name).get_many(names)
        model[one.name] = one.state, {name: files.name_of(fd.fileno()) for name, fd in got.items()}
        close_all(got.values())
    return model


def set_up(client: fdbox.Client, files: Files, model: Model) -> None:
    for one in client.boxes():
        box = client.existing_box(one.name)
        if one.state == "sealed":
            box.unseal()
        box.delete()
    for name, (state, entries) in model.items():
        client.box(name).put_many({entry: files[file] for entry, file in entries.items()})
        if state == "sealed":
            client.existing_box(name).seal()


def ours(links: list[str]) -> list[str]:
    return sorted(link for link in links if link.startswith("/memfd:f-"))


def check(faulty: Faulty, files: Files, allowed: list[Model]) -> Model:
    """Check that there is one of the `allowed`, each open file once in either process, and nothing else."""
    with fdbox.connect(faulty.socket) as client:
        model = found(client, files)
    assert model in allowed
    entries = [file for _, box in model.values() for file in box.values()]
    each = sorted(f"/memfd:f-{file} (deleted)" for file in entries)
    # What is let go is closed a moment after the answer.
    faulty.until(lambda: ours(faulty.held_by_service()) == each)
    faulty.until(lambda: ours(faulty.held()) == sorted(set(each)))
    faulty.until(lambda: not (faulty.folder / "loaded").exists())
    return model


def attempt(faulty: Faulty, files: Files, operation: Operation) -> list[Model]:
    """Do it, and return what there may be now."""
    try:
        with fdbox.connect(faulty.socket) as client:
            operation.do(client, client.existing_box("a"), files)
    except fdbox.ConnectionLost:  # nobody knows
        return [operation.before, operation.after]
    return [operation.after]


@pytest.mark.root
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fault_at_every_step(name: str, faulty: Faulty, files: Files) -> None:
    operation = OPERATIONS[name]
    with fdbox.connect(faulty.socket) as client:
        set_up(client, files, operation.before)
        first = len(faulty.trace())
        operation.do(client, client.existing_box("a"), files)
    check(faulty, files, [operation.after])
    steps = faulty.trace()[first:]
    assert steps
    faults = 0
    for what in ("kill", "cut"):
        for number in range(len(steps)):
            with fdbox.connect(faulty.socket) as client:
                set_up(client, files, operation.before)
            faulty.arm(number, what)
            allowed = attempt(faulty, files, operation)
            faults += not faulty.disarm()
            now = check(faulty, files, allowed)
            faulty.kill_service()  # what there is now was not just remembered
            check(faulty, files, [now])
    print(f"{name}: {faults} faults at {len(steps)} steps: {steps}")
    assert faults >= len(steps)


# --- arrival ---------------------------------------------------------------------------------------------------------


def sealed_by_the_last_kernel(files: Files, folder: Path) -> dict[str, OwnedFd]:
    """Return the sessions of two boxes and of their index, as they come into the next kernel."""
    carrier, kernel = SocketCarrier(folder, {}), FakeKernel(FIRST)
    looks = {name: look(files[name]) for name in files.by_name}
    described = {n: (seen.fd, registry.recognise(seen).describe(seen)) for n, seen in looks.items()}
    boxes = {"a": ("x", "y", "twin"), "b": ("z",)}
    where = {**described, "twin": described["y"]}
    sealed = [
        seal.seal(BoxKey(os.getuid(), box), {n: where[n] for n in names}, carrier, kernel)
        for box, names in boxes.items()
    ]
    seal.write_index(sealed, carrier, kernel)
    sessions = {
        name: OwnedFd(fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 500))
        for name, one in carrier.outgoing.items()
    }
    for one in sealed:
        one.thaw()
    for shipment in carrier.outgoing.values():
        shipment.discard()
    return sessions


@contextlib.contextmanager
def arriving(files: Files, tmp_path: Path, fault: str | None) -> Iterator[Faulty]:
    """Run a daemon into which boxes come, and wait until it serves."""
    sessions = sealed_by_the_last_kernel(files, tmp_path)
    numbers = {name: fd.fileno() for name, fd in sessions.items()}
    environment = {"INCOMING": json.dumps(numbers)}
    if fault is not None:
        (tmp_path / "fault").write_text(fault)
        environment["FAULT_FILE"] = str(tmp_path / "fault")
    faulty = Faulty(env=environment, pass_fds=list(numbers.values()))
    close_all(sessions.values())
    yield faulty
    faulty.stop()


ARRIVED: Model = {"a": ("open", {"x": "x", "y": "y", "twin": "y"}), "b": ("open", {"z": "z"})}


def kept(faulty: Faulty) -> list[str]:
    """Return what the keeper holds beside the entries: a journal, the socket, and no delivery."""
    return sorted(
        link.split(":")[0] if link.startswith("socket") else link
        for link in faulty.held()
        if "journal" in link or link.startswith("socket")
    )


def arrive(files: Files, tmp_path: Path, fault: str | None) -> list[str]:
    """Return the steps."""
    with arriving(files, tmp_path, fault) as faulty:
        check(faulty, files, [ARRIVED])
        with fdbox.connect(faulty.socket) as client:
            status = client.status()
        assert (status.arrived, status.lost) == (4, [])
        assert not (faulty.folder / "fault").exists()
        faulty.kill_service()
        check(faulty, files, [ARRIVED])
        # What it was told with, what the service listens at, and the three sessions that the process inherited.
        expected = ["/memfd:fdbox-journal (deleted)", *["socket"] * 5]
        faulty.until(lambda: kept(faulty) == expected)
        return faulty.trace()


@pytest.mark.parametrize("what", ["kill", "cut"])
def test_a_fault_at_every_step_of_arrival(what: str, files: Files, tmp_path: Path) -> None:
    plain = arrive(files, tmp_path, None)
    steps = plain[
        : max(index for index, step in enumerate(plain) if step == "arrival: Finished") + 1
    ]
    assert len([step for step in steps if step.startswith("arrival")]) == 9
    for number in range(len(steps)):
        arrive(files, tmp_path, f"{number} {what}")
    print(f"arrival: {len(steps)} times {what}: {steps}")
