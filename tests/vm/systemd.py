"""A machine in which a real systemd is PID 1: that of a Debian suite, unpacked, over the root of the host.

It runs two units and what they need: the fdbox.service that is shipped, and one that runs guest.py.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm import debian
from tests.vm.machine import GUEST, PROJECT, Machine

if TYPE_CHECKING:
    from collections.abc import Mapping

#: 257; and one from 261 on, which preserves the stores of services across a kexec by itself
SUITES = ("trixie", "forky")
UNITS = PROJECT / "systemd"

#: The code under test is that of this checkout. A log in the share would keep it from being unmounted.
_FDBOX = f"""\
[Service]
Environment=PYTHONPATH={PROJECT}/src PYTHONDONTWRITEBYTECODE=1 STATE_DIRECTORY=/run/disk/fdbox
StandardError=append:/run/daemon-systemd.log
"""
_GUEST = f"""\
[Unit]
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target
Wants=fdbox.service
After=fdbox.service
[Service]
ExecStart={Path(sys.executable).absolute()} {GUEST}
KillMode=mixed
StandardError=append:/run/vm/guest.out
"""


def lay_units(layer: Path) -> None:
    """Put the units where a machine looks for them that has this folder over its root; and /usr/bin/fdbox."""
    units = layer / "etc/systemd/system"
    shutil.copytree(UNITS, units)
    (units / "guest.service").write_text(_GUEST)
    (units / "tmp.mount").symlink_to("/dev/null")  # this checkout may be in /tmp
    (units / "fdbox.service.d").mkdir()
    (units / "fdbox.service.d/vm.conf").write_text(_FDBOX)
    (layer / "usr/bin").mkdir(parents=True)
    (layer / "usr/bin/fdbox").symlink_to(Path(sys.executable).absolute().with_name("fdbox"))


def machine(
    layer: Path,
    environment: Mapping[str, str],
    suite: str = SUITES[0],
    jump: Path | None = None,
    append: str = "",
) -> Machine:
    """Return it; `layer` is an empty folder, which is laid over everything."""
    lay_units(layer)
    return Machine(
        environment=environment,
        layers=[layer, debian.unpacked("systemd", suite)],
        init=["/usr/lib/systemd/systemd", "--unit=guest.service", "--log-target=console"],
        jump=jump,
        append=append,
    )
