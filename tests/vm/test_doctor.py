"""`fdbox doctor` on machines of which we know what is so; tests/service/test_doctor_setups.py has those that need no VM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.machine import Machine
from tests.vm.stock import ensure_stock_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow]

SCRIPTS = Path(__file__).with_name("scripts")
Expected = Mapping[str, object]
ALL, FILES = ["kernel", "image", "reboot"], ["image", "reboot"]
#: "loads" is what really happens: see scripts/doctor.py
ON: Expected = {
    "ways": ALL,
    "loads": True,
    "handover": "ok",
    "live-update": "ok",
    "device": "ok",
    "holders": "ok",
    "scratch": "ok",
    "signature": "unknown",  # nobody has mounted securityfs
    "images": "ok",
    "clock": "ok",
}
SHOWN: Expected = {**ON, "signature": "ok"}
NEXT: Expected = {"ways": FILES, "loads": True, "next-kernel": "obstacle", "live-update": "ok"}
HELD: Expected = {"ways": FILES, "loads": True, "device": "obstacle", "holders": "warning"}
NOBODY: Expected = {
    "ways": [],
    "capabilities": "obstacle",
    "live-update": "ok",
    "device": "unknown",
    "holders": "unknown",
    "scratch": "unknown",
}
SERVED: Expected = {
    **NOBODY,
    "ways": ALL,  # the next kernel is the same build: that it fits can be seen by everybody
    "capabilities": "ok",
    "device": "ok",
    "images": "unknown",
    "next-kernel": "ok",
}
DISABLED: Expected = {
    "ways": ["reboot"],
    "loads": False,
    "kexec-load-disabled": "obstacle",
    "live-update": "ok",
}
OFF: Expected = {
    "ways": FILES,
    "loads": True,
    "handover": "obstacle",
    "live-update": "obstacle",
    "device": "ok",
}
LOCKED: Expected = {
    "ways": ["reboot"],
    "loads": False,
    "signature": "obstacle",
    "live-update": "ok",
    "scratch": "ok",  # debugfs still shows what anybody may only read
}


def examine(machine: Machine, expected: Mapping[str, Expected]) -> None:
    environment = {"FDBOX_EXPECTED": json.dumps(expected), **machine.environment}
    outcome = replace(machine, deadline=600, environment=environment).boot(SCRIPTS / "doctor.py")
    print(outcome)
    assert outcome.good, str(outcome)


def test_live_update_and_then_no_kexec() -> None:
    setups = {
        "VM with LUO": ON,
        "VM with LUO, asked by nobody": NOBODY,
        "VM with LUO where fdbox serves, asked by nobody": SERVED,
        "VM with LUO and securityfs": SHOWN,
        "VM with LUO, Debian's kernel next": NEXT,
        "VM with LUO, the device held": HELD,
        "VM with kexec_load_disabled": DISABLED,
    }
    examine(Machine(environment={"FDBOX_NEXT": str(ensure_stock_kernel().image)}), setups)


def test_kho_off() -> None:
    examine(Machine(append="kho=off"), {"VM with kho=off": OFF})


def test_liveupdate_off() -> None:
    off = {**OFF, "handover": "ok"}
    examine(Machine(append="liveupdate=off"), {"VM with liveupdate=off": off})


def test_lockdown() -> None:
    setups = {"VM with lockdown": LOCKED, "VM with lockdown and securityfs": LOCKED}
    examine(Machine(append="lockdown=confidentiality"), setups)


def test_debians_own_kernel() -> None:
    expected = {"Debian's own kernel": {**OFF, "kexec-file": "ok"}}
    examine(Machine(kernel=ensure_stock_kernel()), expected)
