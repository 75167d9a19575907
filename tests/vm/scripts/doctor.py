#!/usr/bin/env python3
"""What `fdbox doctor` says here is what FDBOX_EXPECTED has: {setup: {"ways": [...], check: level, ...}}, in this order.

"loads" is what is really so: whether the running kernel loads the next one. Without it no kexec is a way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from fdbox.linux import kexec
from fdbox.linux.fd import open_path
from fdbox.linux.liveupdate import Device

EXPECTED = json.loads(os.environ["FDBOX_EXPECTED"])
SHARE = Path("/run/vm")
NEXT, INITRD = SHARE / "next-kernel", SHARE / "next-initrd"
LINE = "kho=on liveupdate=on"
NOBODY = "65534"


def loads(kernel: Path) -> bool:
    """Try it, and take it back."""
    with open_path(kernel, os.O_RDONLY) as image, open_path(INITRD, os.O_RDONLY) as initrd:
        try:
            kexec.kexec_file_load(image.fileno(), initrd.fileno(), LINE)
        except kexec.KexecError as error:
            print(f"not loaded: {error}")
            return False
    kexec.kexec_unload()
    return True


def doctor(setup: str) -> dict[str, object]:
    """Return what is said in a setup, and whether the next kernel loads."""
    kernel = Path(os.environ["FDBOX_NEXT"]) if "Debian's kernel next" in setup else NEXT
    words = ["doctor", "--json", "--kernel", str(kernel), "--initrd", str(INITRD), "--append", LINE]
    program, environment = ["fdbox"], dict(os.environ)
    if "nobody" in setup:
        program = [sys.executable, "-m", "tests.service.as_user", NOBODY]
        environment["HOME"] = "/nonexistent"
        environment.pop("XDG_RUNTIME_DIR", None)
    done = subprocess.run(
        [*program, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), (done.returncode, done.stderr)
    assert not done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert done.returncode == (0 if said["ways"] else 1)
    for one in said["findings"]:
        if one["level"] != "ok":
            print(f"    {one['level']} {one['check']}: {one['says']} -> {one['remedy']}")
    levels = {one["check"]: one["level"] for one in said["findings"]}
    return {"ways": said["ways"], "loads": loads(kernel), **levels}


def prepare(setup: str, stack: ExitStack) -> None:
    """Make the setup that the name says; until the stack ends, if that can be."""
    if "securityfs" in setup:
        subprocess.run(
            ["mount", "-t", "securityfs", "securityfs", "/sys/kernel/security"], check=True
        )
    if "kexec_load_disabled" in setup:
        Path("/proc/sys/kernel/kexec_load_disabled").write_text("1")
    if "held" in setup:
        stack.enter_context(Device.open())
    if "fdbox serves" in setup:
        process = stack.enter_context(subprocess.Popen(["fdbox", "serve"]))
        stack.callback(process.terminate)
        while not Path("/run/fdbox/io.fdbox").exists():
            assert process.poll() is None
            time.sleep(0.05)


bad = 0
for setup, expected in EXPECTED.items():
    with ExitStack() as prepared:
        prepare(setup, prepared)
        said = doctor(setup)
    got = {what: said[what] for what in expected}
    agrees = "loads" not in expected or said["loads"] == ("image" in str(said["ways"]))
    good = got == expected and agrees
    bad += not good
    print(f"{'ok ' if good else 'BAD'} | {setup} | {expected} | {got}")
assert not bad
