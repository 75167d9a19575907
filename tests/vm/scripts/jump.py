#!/usr/bin/env python3
"""Jump into whatever kernel is named, as one without fdbox would: nothing is inspected, nothing is sealed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fdbox.linux import kexec
from fdbox.linux.fd import open_path


def main() -> None:
    """Jump."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kernel", type=Path, required=True)
    parser.add_argument("--initrd", type=Path, required=True)
    parser.add_argument("--append", required=True)
    options = parser.parse_args()
    line = f"{options.append} {os.environ.get('FDBOX_NEXT_APPEND', '')}"
    with (
        open_path(options.kernel, os.O_RDONLY) as kernel,
        open_path(options.initrd, os.O_RDONLY) as initrd,
    ):
        kexec.kexec_file_load(kernel.fileno(), initrd.fileno(), line)
    os.sync()
    kexec.reboot_kexec()


if __name__ == "__main__":
    main()
