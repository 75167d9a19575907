"""What does fdbox add to the kernel's own cost of a handover? In the VM, across a real kexec, against the bare ioctls."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import HERE, build
from tests.vm.machine import Machine

TARGET = 1.05


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fdbox-bench") as folder:
        environment = {"FDBOX_IOCTLS": str(build("ioctls.c", Path(folder)))}
        machine = Machine(memory="10G", deadline=1200, environment=environment)
        outcome = machine.cross(HERE / "handover_before.py", HERE / "handover_after.py")
    if not outcome.good:
        sys.exit(str(outcome))
    figures: dict[tuple[str, str, str], list[int]] = {}
    for line in "\n".join(step.output for step in outcome.steps).splitlines():
        if line.count("/") == 3:
            name, side, _number, last = line.split("/")
            what, _, value = last.partition("=")
            figures.setdefault((name, what, side), []).append(int(value))
    report(figures)


def report(figures: dict[tuple[str, str, str], list[int]]) -> None:
    for name in dict.fromkeys(name for name, _, _ in figures):
        total = {}
        for side in ("C", "fdbox"):
            cost = {
                what: statistics.median(figures[name, what, side])
                for what in ("preserve", "retrieve")
            }
            total[side] = sum(cost.values())
            print(
                f"{name:14} {side:6}", *(f"{what} {ns / 1e6:9.1f} ms" for what, ns in cost.items())
            )
        print(f"{name:14} fdbox / C: {total['fdbox'] / total['C']:.3f}, target {TARGET}")


main()
