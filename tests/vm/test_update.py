from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vm.kernel import (
    CANDIDATE,
    DEFAULT,
    RECIPES,
    Kernel,
    Recipe,
    ensure_kernel,
)
from tests.vm.machine import Machine
from tests.vm.stock import ensure_stock_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow]

SCRIPTS = Path(__file__).with_name("scripts")


def built(recipe: Recipe) -> Kernel:
    return Kernel(ensure_kernel(recipe))


def updating(first: Recipe, second: Recipe, **more: object) -> Machine:
    return Machine(deadline=1200, kernel=built(first), next_kernel=built(second), **more)  # type: ignore[arg-type]


def test_every_kind_arrives_under_the_next_kernel() -> None:
    machine = updating(CANDIDATE, DEFAULT, append="hugepages=24")
    outcome = machine.cross(SCRIPTS / "kinds_before.py", SCRIPTS / "kinds_after.py")
    print(outcome)
    assert outcome.good, str(outcome)
    versions = ("7.3.0-rc", "7.3.")
    assert outcome.kernels[0] != outcome.kernels[1]
    assert all(map(str.startswith, outcome.kernels, versions)), outcome.kernels


def test_what_would_lose_boxes_is_refused_before_anything_is_sealed() -> None:
    kernels = {name: str(ensure_kernel(recipe)) for name, recipe in RECIPES.items()}
    kernels["stock"] = str(ensure_stock_kernel().image)
    outcome = Machine(environment={"FDBOX_KERNELS": json.dumps(kernels)}).boot(SCRIPTS / "unfit.py")
    print(outcome)
    assert outcome.good, str(outcome)
