"""The code that is now on disk: looked at before it takes over, for a daemon that does not start holds nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from fdbox.errors import UpgradeRefused

#: Imports all that a daemon and a keeper begin with.
_CHECK = "import fdbox, fdbox.cli.main, fdbox.keeper.process, fdbox.service.daemon; print(fdbox.__version__)"
_TIMEOUT = 60.0


async def check_code_on_disk() -> str:
    """Return the version of the code on disk.

    Raises:
        UpgradeRefused: it cannot even be imported.
    """
    return await asyncio.to_thread(_check)


def _check() -> str:
    command = [sys.executable, "-P", "-c", _CHECK]
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
