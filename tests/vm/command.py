"""The command line of `tests/vm/cross` and `tests/vm/boot`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.vm import kernel, stock
from tests.vm.debian import CannotPrepare
from tests.vm.machine import PROJECT, Machine, VmLost

FAILED, CANNOT, LOST = 1, 2, 3


def main(description: str, scripts: list[str]) -> None:
    """Boot, print what the scripts said, and exit: 0 all did well, 1 one failed, 2 cannot boot, 3 the machine was lost."""
    python = PROJECT / ".venv/bin/python"
    if python.exists() and Path(sys.prefix) != PROJECT / ".venv":
        os.execv(python, [str(python), *sys.argv])
    options = _parse(description, scripts)
    machine = Machine(
        memory=options.mem,
        deadline=options.deadline,
        kernel=options.kernel,
        next_kernel=options.next or options.kernel,
        append=options.append,
        environment=dict(pair.split("=", 1) for pair in options.env),
    )
    try:
        outcome = (
            machine.boot(options.script)
            if scripts == ["script"]
            else machine.cross(options.before, options.after)
        )
    except (VmLost, CannotPrepare) as error:
        print(error, file=sys.stderr)
        sys.exit(LOST if isinstance(error, VmLost) else CANNOT)
    print(outcome)
    sys.exit(0 if outcome.good else FAILED)


def _kernel(name: str) -> kernel.Kernel:
    if name == "stock":
        return stock.ensure_stock_kernel()
    if recipe := kernel.RECIPES.get(name):
        return kernel.Kernel(kernel.ensure_kernel(recipe))
    return kernel.Kernel(Path(name))


def _parse(description: str, scripts: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Scripts are executable, run as root, see `fdbox` on PATH and the project importable; files in "
        "$FDBOX_NOTES outlive the jump. Exit status: 0 good, 1 a script failed, 2 cannot boot, 3 machine lost.",
    )
    for name in scripts:
        parser.add_argument(name, type=Path, metavar=name.upper())
    parser.add_argument("--mem", default="4G", metavar="SIZE", help="memory (4G)")
    what = "an image, `stock` (Debian's own) or one of " + ", ".join(kernel.RECIPES)
    parser.add_argument("--kernel", type=_kernel, metavar="K", help=f"boot this: {what}")
    parser.add_argument("--next", type=_kernel, metavar="K", help="jump into this (the same)")
    parser.add_argument(
        "--deadline", type=float, default=300, metavar="S", help="seconds for all (300)"
    )
    parser.add_argument("--append", default="", metavar="TEXT", help="more of the command line")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for scripts"
    )
    return parser.parse_args()
