"""The code that is now on disk: looked at before it takes over, for a daemon that does not start holds nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

from fdbox.errors import UpgradeRefused

if TYPE_CHECKING:
    from pathlib import Path

#: Imports all that a daemon and a keeper begin with, and reads the configuration as they do.
_CHECK = """\
import pathlib, sys
import fdbox, fdbox.cli.main, fdbox.keeper.process, fdbox.service.daemon
fdbox.service.config.load(pathlib.Path(sys.argv[1]) if sys.argv[1:] else None)
print(fdbox.__version__)
"""
_TIMEOUT = 60.0


async def check_code_on_disk(config: Path | None = None) -> str:
    """Return the version of the code on disk.

    Raises:
        UpgradeRefused: it cannot even be imported, or cannot use the configuration file.
    """
    return await asyncio.to_thread(_check, config)


def _check(config: Path | None) -> str:
    command = [sys.executable, "-P", "-c", _CHECK, *([] if config is None else [str(config)])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UpgradeRefused(f"the code on disk does not start: {error}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UpgradeRefused(f"the code on disk does not start: {reason}")
    return done.stdout.strip()
