#!/usr/bin/env python3
"""The running kernel says what it will write, by each source it has, and they agree; its own image would take that over."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from fdbox.nextkernel import running as module
from fdbox.nextkernel.abi import Abi
from fdbox.nextkernel.kcore import scan_kcore
from fdbox.nextkernel.running import running

OUT = Path("/sys/kernel/debug/kho/out")


def check(condition: object, what: str) -> None:
    """End the script if something is not so."""
    print(f"{'good' if condition else 'BAD'}: {what}")
    if not condition:
        raise SystemExit(what)


def inspect(*options: str) -> tuple[int, dict[str, object]]:
    """Return the status of `fdbox inspect` of this kernel's image, and what it says."""
    image = os.environ["FDBOX_IMAGE"]
    done = subprocess.run(
        ["fdbox", "inspect", image, "--json", *options], capture_output=True, text=True, check=False
    )
    print(done.returncode, done.stdout, done.stderr)
    return done.returncode, json.loads(done.stdout)


def main() -> None:
    """Check."""
    if not OUT.exists():
        subprocess.run(["mount", "-t", "debugfs", "none", "/sys/kernel/debug"], check=True)
    found = running()
    print(found)
    check(found.liveupdate, "live update is on")
    check(found.handover, "it hands over")
    memory = scan_kcore()
    print(memory)
    check(memory is not None, "its memory can be read")
    assert memory is not None
    check(found.kho.source == found.memfd.source == "/proc/kcore", "and is what is believed")
    strings = [one.strings for one in (found.kho, found.luo, found.memfd, found.others)]
    check(Abi(*(one or () for one in strings)) == memory, "all of it is known")
    check(all(len(one or ()) == 1 for one in strings[:3]), "each format has one string")
    shown = module._from_debugfs(found, OUT)
    check(shown.kho.strings == found.kho.strings, "debugfs says the same of KHO")
    check(shown.luo.strings == found.luo.strings, "and of LUO")
    check(found.configuration is not None, "the configuration is there")
    status, said = inspect("--append", "kho=on liveupdate=on")
    check(status == 0, "its own image would take over")
    check(said["accepts"] == {**memory_document(memory)}, "and accepts what it writes")
    for line, what in {
        "liveupdate=on kho=off": "kho=off",
        "kho=on": "liveupdate=on is missing",
    }.items():
        status, said = inspect("--append", line)
        problems = said["problems"]
        assert isinstance(problems, list)
        check(status == 1, f"not with {line!r}")
        check([problem["what"] for problem in problems] == [what], f"for {what}")


def memory_document(abi: Abi) -> dict[str, list[str]]:
    """Return the strings as JSON has them."""
    return {name: list(getattr(abi, name)) for name in ("kho", "luo", "memfd", "others")}


if __name__ == "__main__":
    main()
