"""What does memory cost a live update, by how it lies? Predicted in the first kernel, measured across a real kexec in the VM.

    python benchmarks/blackout.py [PLOT.svg]

Each case is a crossing of its own: a memfd of some MiB, of 4 KiB or huge pages, contiguous, or scattered in pieces, or
scattered and then compacted. Of the boot is shown what is on top of one to which memory adds nothing. The prediction
is made of how the memory lay in the first kernel, and of the speed of its interpreter.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib as mpl
from tests.vm.machine import PROJECT, Machine

from fdbox.handover import cost
from fdbox.linux.layout import Layout

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
PLOT = PROJECT / "docs/blackout.svg"
MARK = "FIGURES "
COSTS = ("preserve", "boot", "retrieve")
_HARDLY = 1000


@dataclass(frozen=True)
class Case:
    """MiB, and how they lie: "4k", "huge", "scattered" (in pieces of `piece` pages), or scattered and compacted."""

    size: int
    how: str
    piece: int = 1

    @property
    def name(self) -> str:
        return f"{self.size} MiB {self.how}" + (f" by {self.piece}" if self.piece > 1 else "")


CASES = [
    Case(0, "4k"),
    *(Case(size, how) for size in (64, 256, 1024) for how in ("4k", "huge")),
    Case(64, "scattered"),
    Case(256, "scattered", 4),
    Case(1024, "scattered", 16),
    Case(64, "compacted"),
    Case(256, "compacted", 4),
    Case(1024, "compacted", 16),
]


def cross(case: Case) -> dict[str, float]:
    environment = {"FDBOX_CASE": json.dumps([case.size, case.how, case.piece])}
    machine = Machine(
        memory="6G", deadline=900, environment=environment, jump=HERE / "blackout_jump.py"
    )
    outcome = machine.cross(HERE / "blackout_before.py", HERE / "blackout_after.py")
    if not outcome.good:
        sys.exit(str(outcome))
    found: dict[str, float] = {}
    for step in outcome.steps:
        for line in step.output.splitlines():
            if line.startswith(MARK):
                found |= json.loads(line.removeprefix(MARK))
    return found


def floor_of(figures: dict[Case, dict[str, float]]) -> float:
    """Return the seconds of a boot to which memory adds nothing: the quickest of all that have hardly a run."""
    return min(one["boot"] for one in figures.values() if one["runs"] < _HARDLY)


def report(figures: dict[Case, dict[str, float]]) -> None:
    floor = floor_of(figures)
    head = ("case", "pages", "huge", "runs", "movable", "preserve", "boot", "retrieve")
    print(("{:26}" + "{:>9}" * 4 + "{:>18}" * 3).format(*head))
    print(f"{'(predicted / measured, s)':>116}")
    for case, one in figures.items():
        cells = [
            f"{predicted(one)[what]:7.2f} / {measured(one, what, floor):6.2f}" for what in COSTS
        ]
        counts = [f"{int(one[what]):9}" for what in ("pages", "huge", "runs", "movable")]
        print(f"{case.name:26}{''.join(counts)}" + "".join(f"{cell:>18}" for cell in cells))
    print(
        f"floor: {floor:.2f} s of boot; a turn: {statistics.median(one['turn'] for one in figures.values()) * 1e9:.0f} ns"
    )


def predicted(one: dict[str, float]) -> dict[str, float]:
    """Return what is predicted of memory that lies so, on a machine of that speed."""
    lies = Layout(*(int(one[what]) for what in ("pages", "huge", "runs", "movable")))
    return cost.predict(lies, one["turn"])._asdict()


def measured(one: dict[str, float], what: str, floor: float) -> float:
    return one[what] - (floor if what == "boot" else 0.0)


def plot(figures: dict[Case, dict[str, float]], path: Path) -> None:
    floor = floor_of(figures)
    whole = {
        case: (
            sum(predicted(one).values()),
            sum(measured(one, what, floor) for what in COSTS),
        )
        for case, one in figures.items()
        if case.size
    }
    _, axes = plt.subplots(figsize=(7, 6))
    for how, marker in (("4k", "o"), ("huge", "s"), ("scattered", "^"), ("compacted", "v")):
        points = [(max(m, 0.01), max(p, 0.01)) for case, (p, m) in whole.items() if case.how == how]
        axes.scatter(*zip(*points, strict=True), marker=marker, label=how, s=60)
    for case, (expected, seconds) in whole.items():
        axes.annotate(f" {case.size}", (max(seconds, 0.01), max(expected, 0.01)), fontsize=8)
    axes.plot([0.01, 300], [0.01, 300], color="grey", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="measured, s", ylabel="predicted, s")
    axes.set_title("What memory adds to a live update (QEMU without KVM; MiB at the points)")
    axes.legend()
    plt.savefig(path)


def main() -> None:
    figures = {}
    for case in CASES:
        figures[case] = cross(case)
        print(case.name, json.dumps(figures[case]), file=sys.stderr, flush=True)
    report(figures)
    plot(figures, Path(sys.argv[1]) if len(sys.argv) > 1 else PLOT)


if __name__ == "__main__":
    main()
