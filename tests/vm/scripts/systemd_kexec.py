#!/usr/bin/env python3
"""Load the next kernel, and leave the jump to systemd: it stops what it can, kills what is left, and unmounts."""

from __future__ import annotations

import argparse
import signal
import subprocess
from pathlib import Path

from fdbox.linux import kexec

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--kernel", type=Path, required=True)
parser.add_argument("--initrd", type=Path, required=True)
parser.add_argument("--append", required=True)
options = parser.parse_args()
with options.kernel.open("rb") as kernel, options.initrd.open("rb") as initrd:
    kexec.kexec_file_load(kernel.fileno(), initrd.fileno(), options.append)
subprocess.run(["systemctl", "kexec"], check=True)
signal.pause()  # the machine is to end by the jump, not because this script has
