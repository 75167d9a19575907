from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.kernel import ensure_kernel, ensure_source_package
from tests.vm.machine import Machine, VmLost

# Every kind crosses in test_update.py, into the next kernel, and in test_stock.py.
pytestmark = [pytest.mark.vm, pytest.mark.slow]

SCRIPTS = Path(__file__).with_name("scripts")


@pytest.fixture(scope="session", autouse=True)
def kernel() -> Path:
    return ensure_kernel()


def test_real_input_crosses_a_real_kexec() -> None:
    large = ensure_source_package()
    machine = Machine(deadline=900, environment={"FDBOX_LARGE_FILE": str(large)})
    outcome = machine.cross(SCRIPTS / "real_before.py", SCRIPTS / "real_after.py")
    print(outcome)
    assert outcome.good, str(outcome)


def test_an_asyncio_program_goes_on() -> None:
    outcome = Machine(deadline=600).cross(
        SCRIPTS / "asyncio_before.py", SCRIPTS / "asyncio_after.py"
    )
    print(outcome)
    assert outcome.good, str(outcome)


def test_a_service_killed_again_and_again_while_boxes_arrive_loses_nothing() -> None:
    machine = Machine(
        deadline=900,
        serve=["python", "-m", "tests.service.faulty", "/run/fdbox"],
        environment={"FAULTY_REAL": "1", "FAULT_FILE": "/run/vm/notes/fault"},
    )
    outcome = machine.cross(SCRIPTS / "killed_before.py", SCRIPTS / "killed_after.py")
    print(outcome)
    assert outcome.good, str(outcome)


def test_an_abort_leaves_everything_as_it_was() -> None:
    outcome = Machine(deadline=600).boot(SCRIPTS / "abort.py")
    print(outcome)
    assert outcome.good, str(outcome)


def test_every_refusal_of_the_device_has_its_name() -> None:
    outcome = Machine().boot(SCRIPTS / "refusals.py")
    print(outcome)
    assert outcome.good, str(outcome)


def test_a_script_that_fails_is_not_a_lost_machine() -> None:
    outcome = Machine().boot(SCRIPTS / "failing.sh")
    assert [step.status for step in outcome.steps] == [7]
    assert "this is said" in str(outcome)


def test_a_lost_machine_is_not_a_script_that_failed() -> None:
    with pytest.raises(VmLost, match="console"):
        Machine().boot(SCRIPTS / "panic.sh")
