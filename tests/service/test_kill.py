"""The service is killed with SIGKILL, again and again, under everything that clients do."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import fdbox
from fdbox.linux import kcmp, memfd
from tests.processes import Serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fdbox.linux.fd import OwnedFd

ROUNDS = 200
#: how many of the killed have surely served: of the others, some are killed while they start
SERVING = 0.6
CLIENTS = 8
BOXES = st.sampled_from(["a", "b", "c"])
NAMES = st.lists(st.sampled_from([f"n{i}" for i in range(6)]), min_size=1, max_size=3, unique=True)


class KilledMachine(RuleBasedStateMachine):
    """Clients, boxes and kill -9 at any point; the model and the daemon agree after each."""

    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, dict[str, OwnedFd]] = {}
        self.serving = Serving()
        self.client = fdbox.connect(self.serving.socket)

    @rule(box=BOXES)
    def create(self, box: str) -> None:
        self.client.box(box)
        self.model.setdefault(box, {})

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        box = data.draw(st.sampled_from(sorted(self.model)))
        self.client.existing_box(box).delete()
        for fd in self.model.pop(box).values():
            fd.close()

    @precondition(lambda self: self.model)
    @rule(data=st.data(), names=NAMES, replace=st.booleans())
    def put(self, data: st.DataObject, names: list[str], replace: bool) -> None:
        box = data.draw(st.sampled_from(sorted(self.model)))
        held = self.model[box]
        new = {name: memfd.create(name) for name in names}
        try:
            self.client.existing_box(box).put_many(new, replace=replace)
        except fdbox.EntryExists:
            assert not replace
            assert set(names) & set(held)
            for fd in new.values():
                fd.close()
        else:
            for name, fd in new.items():
                if name in held:
                    held[name].close()
                held[name] = fd

    @precondition(lambda self: any(self.model.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        box = data.draw(st.sampled_from(sorted(box for box in self.model if self.model[box])))
        name = data.draw(st.sampled_from(sorted(self.model[box])))
        self.client.existing_box(box).remove(name)
        self.model[box].pop(name).close()

    @rule(which=st.integers(0, 40))
    def end_service(self, which: int) -> None:
        """Sometimes: what is between two ends of the service is what matters."""
        if which == 0:
            self.serving.reexec()
        elif which <= 3:
            self.serving.kill_service()

    @invariant()
    def same(self) -> None:
        type(self).operations += 1
        found = {one.name: self.client.existing_box(one.name) for one in self.client.boxes()}
        assert set(found) == set(self.model)
        for name, box in found.items():
            assert [entry.name for entry in box.list()] == list(self.model[name])
            for entry, fd in box.get_many(self.model[name]).items():
                with fd:
                    assert kcmp.same_file(fd.fileno(), self.model[name][entry].fileno())

    def teardown(self) -> None:  # type: ignore[explicit-override]  # typing.override is Python 3.12
        self.client.close()
        for box in self.model.values():
            for fd in box.values():
                fd.close()
        expected = sum(len(box) for box in self.model.values())
        try:
            # each exactly once, as soon as the keeper has heard of the last removal
            self.serving.until(lambda: self._held() == expected)
        finally:
            self.serving.stop()

    def _held(self) -> int:
        return len([name for name in self.serving.held() if "memfd:n" in name])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_clients_boxes_and_kill() -> None:
    KilledMachine.operations = 0
    test = KilledMachine.TestCase
    test.settings = settings(max_examples=25, stateful_step_count=120, deadline=None)
    while KilledMachine.operations < 2000:  # how long an example is, Hypothesis decides
        test().runTest()
    print(f"{KilledMachine.operations} operations")


@dataclass
class Load:
    """What one client did, and what it was promised."""

    socket: Path
    number: int
    acknowledged: dict[str, OwnedFd] = field(default_factory=dict)
    #: a call that was lost in its middle: nobody knows
    doubtful: set[str] = field(default_factory=set)
    operations: int = 0
    reconnects: int = 0
    longest_gap: float = 0.0
    failure: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        try:
            with fdbox.connect(self.socket) as client:
                box = client.existing_box(f"load{self.number}")
                chance = random.Random(self.number)
                while not stop.is_set():
                    began = time.monotonic()
                    try:
                        self.operations += self.step(box, chance)
                    except fdbox.ConnectionLost:
                        self.reconnects += 1
                    self.longest_gap = max(self.longest_gap, time.monotonic() - began)
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.failure = error

    def step(self, box: fdbox.Box, chance: random.Random) -> bool:
        """Return whether there was something to do."""
        name = f"n{chance.randrange(40)}"
        what = chance.randrange(3)
        if what == 0 and name not in self.acknowledged and name not in self.doubtful:
            fd = memfd.create(f"{self.number}-{name}")
            try:
                box.put(name, fd)
            except fdbox.ConnectionLost:
                self.doubtful.add(name)
                fd.close()
                raise
            self.acknowledged[name] = fd
        elif what == 1 and name in self.acknowledged:
            fd = self.acknowledged.pop(name)
            fd.close()
            self.doubtful.add(name)
            box.remove(name)
            self.doubtful.discard(name)
        elif name in self.acknowledged:
            with box.get(name) as got:
                assert kcmp.same_file(got.fileno(), self.acknowledged[name].fileno())
        else:
            return False
        return True


@contextlib.contextmanager
def under_load(loads: list[Load]) -> Iterator[None]:
    """Have clients put, get and remove meanwhile."""
    with fdbox.connect(loads[0].socket) as client:
        for load in loads:
            client.box(f"load{load.number}")
    stop = threading.Event()
    threads = [threading.Thread(target=load.run, args=(stop,)) for load in loads]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def check_loads(loads: list[Load]) -> None:
    """Check that what was acknowledged is there, that nothing else is, and that there was no other error."""
    assert [load.failure for load in loads if load.failure] == []
    with fdbox.connect(loads[0].socket) as client:
        for load in loads:
            box = client.existing_box(f"load{load.number}")
            there = {entry.name for entry in box.list()}
            assert set(load.acknowledged) <= there <= set(load.acknowledged) | load.doubtful
            for name, original in load.acknowledged.items():
                with box.get(name) as got, original:
                    assert kcmp.same_file(got.fileno(), original.fileno())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_200_kills_under_load_lose_nothing() -> None:
    with Serving() as serving:
        check_kills(serving)


def check_kills(serving: Serving) -> None:
    loads = [Load(serving.socket, number) for number in range(CLIENTS)]
    chance = random.Random(0)
    with under_load(loads):
        for _ in range(ROUNDS):
            if chance.random() < SERVING:
                serving.until(serving.answers)
            time.sleep(chance.random() * 0.2)
            serving.kill_service()
    check_loads(loads)
    print(
        f"{ROUNDS} rounds, {sum(load.operations for load in loads)} operations, "
        f"{sum(load.reconnects for load in loads)} calls that nobody knows of, "
        f"longest gap {max(load.longest_gap for load in loads):.2f} s"
    )
    assert sum(load.reconnects for load in loads) > 0, "the kills were felt"


def test_a_keeper_that_dies_is_told() -> None:
    """Nothing is acknowledged any more that would not outlive the service; what is held stays."""
    serving = Serving()
    with fdbox.connect(serving.socket) as client, memfd.create("m") as fd:
        box = client.box("b")
        box.put("before", fd)
        assert client.status().kept
        service = serving.kill_keeper()
        assert not client.status().kept
        line = [sys.executable, "-m", "fdbox", "status", "--socket", str(serving.socket)]
        shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
        assert "kept by      nobody: the keeper is gone (" in shown
        with pytest.raises(fdbox.KeeperGone, match="restart"):
            box.put("after", fd)
        assert [entry.name for entry in box.list()] == ["before"]
        os.kill(service, signal.SIGTERM)
    end = time.monotonic() + 20
    while serving.socket.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    serving.clean_up()
