"""`fdbox doctor` on machines of which we know what is so; tests/service/test_doctor.py has those that need no VM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.vm.machine import Machine
from tests.vm.stock import ensure_stock_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow]

SCRIPTS = Path(__file__).with_name("scripts")
ALL, FILES = ["kernel", "image", "reboot"], ["image", "reboot"]
OFF = {"ways": FILES, "handover": "obstacle", "live-update": "obstacle", "device": "ok"}
ON = {"ways": ALL, "handover": "ok", "live-update": "ok", "device": "ok", "scratch": "ok"}
NEXT = {"ways": FILES, "next-kernel": "obstacle", "live-update": "ok"}
DISABLED = {"ways": ["reboot"], "kexec-load-disabled": "obstacle", "live-update": "ok"}
#: lockdown demands signatures where CONFIG_KEXEC_SIG is built in, which it is not in ours
LOCKED = {"ways": ALL, "signature": "ok", "live-update": "ok"}

Expected = Mapping[str, Mapping[str, object]]


def examine(machine: Machine, expected: Expected) -> None:
    machine = Machine(
        deadline=600,
        kernel=machine.kernel,
        append=machine.append,
        environment={"FDBOX_EXPECTED": json.dumps(expected), **machine.environment},
    )
    outcome = machine.boot(SCRIPTS / "doctor.py")
    print(outcome)
    assert outcome.good, str(outcome)


def test_live_update_and_then_no_kexec() -> None:
    setups = {
        "VM with LUO": ON,
        "VM with LUO, Debian's kernel next": NEXT,
        "VM with kexec_load_disabled": DISABLED,
    }
    machine = Machine(environment={"FDBOX_NEXT": str(ensure_stock_kernel().image)})
    examine(machine, setups)


def test_kho_off() -> None:
    examine(Machine(append="kho=off"), {"VM with kho=off": OFF})


def test_lockdown() -> None:
    examine(Machine(append="lockdown=confidentiality"), {"VM with lockdown": LOCKED})


def test_debians_own_kernel() -> None:
    expected: Expected = {"Debian's own kernel": {**OFF, "kexec-file": "ok"}}
    examine(Machine(kernel=ensure_stock_kernel()), expected)
