"""What every benchmark needs: a C program built, the CPU time of a process, and ratios that say how sure they are."""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HERE = Path(__file__).parent
ROUNDS = 9


def build(source: str, into: Path, *libraries: str) -> Path:
    program = into / Path(source).stem
    command = ["cc", "-O2", "-Wall", "-o", str(program), str(HERE / source), *libraries]
    subprocess.run(command, check=True)
    return program


def cpu(pid: int) -> int:
    """Return the nanoseconds that all threads of a process, and of its children, have run."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
        total += sum(cpu(int(child)) for child in (task / "children").read_text().split())
    return total


def rounds(runs: Mapping[str, Callable[[], float]], count: int = ROUNDS) -> dict[str, list[float]]:
    """Run each in turn, again and again, so that what disturbs the machine disturbs all; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(count + 1):
        for name, run in runs.items():
            cost = run()
            if number:
                found[name].append(cost)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the median of the rounds' ratios, and the middle half of them."""
    each = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
