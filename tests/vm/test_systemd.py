from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vm import debian, systemd
from tests.vm.kernel import ensure_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow]

SCRIPTS = Path(__file__).with_name("scripts")


@pytest.fixture(scope="session", autouse=True)
def kernel() -> Path:
    return ensure_kernel()


@pytest.mark.parametrize("suite", systemd.SUITES)
def test_systemd_understands_every_line_of_the_units(suite: str, tmp_path: Path) -> None:
    root = debian.unpacked("systemd", suite)
    units = tmp_path / "units"
    shutil.copytree(systemd.UNITS, units)
    unit = units / "fdbox.service"
    unit.write_text(unit.read_text().replace("/usr/bin/fdbox", "/bin/true"))  # it looks for it here
    (units / "example.service").write_text("[Service]\nExecStart=/bin/true\n")
    analyze = [*debian.command(root, "usr/bin/systemd-analyze"), "verify", "--man=no"]
    done = subprocess.run(
        [*analyze, str(unit), str(units / "example.service")],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:{root}/usr/lib/systemd/system"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("what", ["kill", "reload", "stop"])
def test_nothing_acknowledged_is_lost(what: str, tmp_path: Path) -> None:
    machine = systemd.machine(tmp_path, {"FDBOX_CHECK": what})
    outcome = machine.boot(SCRIPTS / "systemd_store.py")
    print(outcome)
    assert outcome.good, str(outcome)


@pytest.mark.parametrize(
    ("carrier", "append"), [("kernel", ""), ("image", "kho=off liveupdate=off")]
)
def test_an_update_leaves_the_jump_to_systemd(carrier: str, append: str, tmp_path: Path) -> None:
    machine = systemd.machine(tmp_path, {"FDBOX_CARRIER": carrier}, append=append)
    outcome = machine.cross(SCRIPTS / "updated_before.py", SCRIPTS / "updated_after.py")
    print(outcome)
    assert outcome.good, str(outcome)


@pytest.mark.parametrize("suite", systemd.SUITES)
def test_a_sealed_box_survives_a_shutdown_into_the_next_kernel(suite: str, tmp_path: Path) -> None:
    machine = systemd.machine(tmp_path, {}, suite, jump=SCRIPTS / "systemd_kexec.py")
    outcome = machine.cross(SCRIPTS / "systemd_before.py", SCRIPTS / "systemd_after.py")
    print(outcome)
    assert outcome.good, str(outcome)
