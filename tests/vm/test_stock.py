"""Debian's own kernel, which hands nothing over: what crosses does so by images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.kernel import DEFAULT, Kernel, ensure_kernel, ensure_source_package
from tests.vm.machine import Machine
from tests.vm.stock import ensure_stock_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow]

SCRIPTS = Path(__file__).with_name("scripts")


@pytest.fixture(scope="module")
def machine() -> Machine:
    environment = {"FDBOX_CARRIER": "image", "FDBOX_LARGE_FILE": str(ensure_source_package())}
    return Machine(deadline=1200, kernel=ensure_stock_kernel(), environment=environment)


def test_every_kind_crosses_a_real_kexec(machine: Machine) -> None:
    machine = replace(machine, append="hugepages=24")
    outcome = machine.cross(SCRIPTS / "kinds_before.py", SCRIPTS / "kinds_after.py")
    print(outcome)
    assert outcome.good, str(outcome)
    assert all("cloud" in kernel for kernel in outcome.kernels), outcome.kernels


def test_boxes_cross_to_it_from_a_kernel_that_hands_over(machine: Machine) -> None:
    ours = Kernel(ensure_kernel(DEFAULT))
    machine = replace(
        machine, kernel=ours, next_kernel=machine.kernel, options=("--carrier", "image")
    )
    outcome = machine.cross(SCRIPTS / "real_before.py", SCRIPTS / "real_after.py")
    print(outcome)
    assert outcome.good, str(outcome)
