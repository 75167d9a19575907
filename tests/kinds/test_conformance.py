"""Every sample of every kind, through every case."""

from __future__ import annotations

import os
import random

import pytest

from fdbox.errors import LateWrite
from fdbox.handover.arrive import Loss
from fdbox.kinds import registry
from fdbox.kinds.freight import Place
from fdbox.kinds.handed import KINDS as HANDED
from fdbox.kinds.look import look
from tests.kinds import conformance
from tests.kinds.conformance import World, kinds_of, load_raw, mutants
from tests.kinds.samples import Sample, every_sample

SAMPLES = [sample for sample in every_sample() if not sample.vm_only]
HOSTILE = 60  # mutants a sample; test_fuzz.py has many more


def each(samples: list[Sample]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "sample",
        [
            pytest.param(one, marks=[pytest.mark.root] if one.root else [], id=one.name)
            for one in samples
        ],
    )


def test_every_carried_kind_has_a_sample() -> None:
    sampled = {kind for one in every_sample() for kind in one.kinds.values()}
    handed = {kind.name for kind in HANDED}  # no kernel takes one yet: test_handed.py
    assert sampled >= set(registry.CARRIED) - handed


@each(SAMPLES)
def test_it_is_of_its_kind_and_of_no_other(sample: Sample, world: World) -> None:
    for name, fd in world.make(sample).items():
        assert kinds_of(fd.fileno()) == [sample.kinds[name]]
        seen = look(fd.fileno())
        kind = registry.recognise(seen)
        assert kind.describe(seen).kind == kind.name
        assert kind.carriage(seen, world.carrier).carrier == "kernel"


@each(SAMPLES)
def test_freezing_and_thawing_leaves_it_as_it_was(sample: Sample, world: World) -> None:
    expected = world.expected(sample)
    entries = world.make(sample)
    for _ in range(2):
        world.seal(entries).thaw()
    assert world.observe(sample, entries) == expected


@each(SAMPLES)
def test_nothing_is_left_of_it_in_a_process_that_uses_it_too(sample: Sample, world: World) -> None:
    """Another process holds the same open files while they are sealed and thawed, and sees them as they were."""
    expected = world.expected(sample)
    entries = world.make(sample)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        try:
            os._exit(0 if world.observe(sample, entries) == expected else 1)
        finally:
            os._exit(2)
    os.close(reading)
    world.seal(entries).thaw()
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0


@each(SAMPLES)
def test_it_is_the_same_in_the_next_incarnation(sample: Sample, any_world: World) -> None:
    expected = any_world.expected(sample)
    names = list(own := any_world.make(sample))
    any_world.jump(sample, own)
    entries, losses = any_world.arrive()
    assert list(entries) == names, losses
    for loss, said in zip(losses, sample.lost, strict=True):
        assert said in loss.reason
    assert any_world.observe(sample, entries) == expected


@each(SAMPLES)
def test_it_crosses_twice(sample: Sample, any_world: World) -> None:
    expected = any_world.expected(sample)
    any_world.jump(sample, any_world.make(sample))
    entries, _ = any_world.arrive()
    any_world.jump(sample, entries)
    entries, _ = any_world.arrive()
    assert any_world.observe(sample, entries) == expected


@each(SAMPLES)
def test_the_incarnation_that_saved_it_does_not_load_it(sample: Sample, world: World) -> None:
    saved_by = world.kernel.running
    world.jump(sample, world.make(sample))
    world.kernel.running = saved_by
    entries, losses = world.arrive()
    assert entries == {}
    assert [type(loss) for loss in losses] == [Loss]
    assert "saved by the kernel that runs now" in losses[0].reason


@each(SAMPLES)
def test_what_was_not_changed_is_verified(sample: Sample, any_world: World) -> None:
    sealed = any_world.seal(any_world.make(sample))
    try:
        sealed.verify()
    finally:
        sealed.thaw()


@each([sample for sample in SAMPLES if sample.disturb is not None])
def test_a_late_write_is_noticed(sample: Sample, any_world: World) -> None:
    entries = any_world.make(sample)
    sealed = any_world.seal(entries)
    try:
        assert sample.disturb is not None
        sample.disturb(conformance.numbers(entries))
        with pytest.raises(LateWrite) as caught:
            sealed.verify()
        assert caught.value.context["entry"] in entries
        assert caught.value.context["box"] == conformance.BOX.name
    finally:
        sealed.thaw()


@each(SAMPLES)
def test_hostile_components_are_refused(sample: Sample, world: World) -> None:
    entries = world.make(sample)
    sealed = world.seal(entries)
    made = {
        Place(number, index): file.fd
        for number, part in enumerate(sealed.parts)
        for index, file in enumerate(part.files)
    }
    before = len(os.listdir("/proc/self/fd"))
    try:
        for part in sealed.parts:
            for raw in mutants(part.component, random.Random(sample.name), HOSTILE):
                load_raw(part.kind.name, raw, world, made)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        sealed.thaw()
