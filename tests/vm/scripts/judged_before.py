#!/usr/bin/env python3
"""What the verdict on the next kernel is, before the jump that shows whether it is right."""

from __future__ import annotations

import os

from fdbox.linux.fd import open_path
from fdbox.nextkernel.inspect import inspect
from fdbox.nextkernel.running import running
from fdbox.nextkernel.verdict import judge


def main() -> None:
    """Judge, and compare with what the test expects."""
    line = f"kho=on liveupdate=on {os.environ.get('FDBOX_NEXT_APPEND', '')}"
    with open_path("/run/vm/next-kernel", os.O_RDONLY) as kernel:
        verdict = judge(inspect(kernel.fileno()), running(), line)
    print(*verdict.problems, sep="\n")
    said = f"handover={verdict.handover} survives={verdict.survives}"
    print(said)
    if said != os.environ["FDBOX_EXPECTED"]:
        raise SystemExit(f"expected {os.environ['FDBOX_EXPECTED']}")


if __name__ == "__main__":
    main()
