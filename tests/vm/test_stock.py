"""Debian's own kernel, which hands nothing over: what crosses does so by images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.kernel import DEFAULT, Kernel, ensure_kernel
from tests.vm.machine import Machine
from tests.vm.stock import ensure_stock_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow]

SCRIPTS = Path(__file__).with_name("scripts")


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(
        deadline=1200,
        kernel=ensure_stock_kernel(),
        append="hugepages=24",
        environment={"FDBOX_CARRIER": "image"},
    )


def test_every_kind_crosses_a_real_kexec(machine: Machine) -> None:
    outcome = machine.cross(SCRIPTS / "kinds_before.py", SCRIPTS / "kinds_after.py")
    print(outcome)
    assert outcome.good, str(outcome)
    assert all("cloud" in kernel for kernel in outcome.kernels), outcome.kernels
