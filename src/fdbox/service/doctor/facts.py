"""What is so on this machine, as far as this process may see it; None is what it may not, or what is not there."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.handover.carriers import image
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.linux import files, kexec, layout, liveupdate, privilege
from fdbox.model import Carriage
from fdbox.nextkernel.load import RunningKernel, systemd_runs
from fdbox.nextkernel.running import Running, running
from fdbox.nextkernel.verdict import Problem, judge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fdbox.nextkernel.inspect import KernelImage
    from fdbox.varlink.interface import Prediction, StatusReply

_SHMEM = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_UNIT = "fdbox.service"
_PROPERTIES = ("LoadState", "FileDescriptorStoreMax", "FileDescriptorStorePreserve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """The next kernel: its image, its initrd's bytes, and what is wrong with it."""

    image: KernelImage
    initrd: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """The daemon that serves here."""

    status: StatusReply
    #: bytes of all that this user may see in boxes
    held: int
    #: what memory adds to an update by the kernel; None: only root may ask
    prediction: Prediction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that checks look at."""

    running: Running
    next: Next | None = None
    #: whether the device takes memory, tried; None: it is not for us to try
    kernel: Carriage | None = None
    holders: tuple[tuple[int, str], ...] = ()
    #: kexec_file_load(2) is there, asked
    kexec_file: bool | None = None
    load_disabled: int | None = None
    load_limit: int | None = None
    lockdown: str | None = None
    secure_boot: bool | None = None
    #: bytes of each area that the next kernel starts in
    scratch: tuple[int, ...] | None = None
    capabilities: frozenset[str] | None = None
    in_initial_pid_namespace: bool | None = None
    descriptors: int = 0
    shmem_huge: str | None = None
    memfd_noexec: int | None = None
    #: of systemd as PID 1
    systemd: int | None = None
    unit: Mapping[str, str] = field(default_factory=dict)
    daemon: Daemon | None = None
    image_directory: Path
    images: Carriage
    images_free: int | None = None
    memory_free: int = 0


def gather(
    image_directory: Path, daemon: Daemon | None, chosen: tuple[KernelImage, int, str] | None
) -> Facts:
    """Return the facts of this machine; takes a second or two. `chosen` is a next kernel, its initrd's bytes, its command line."""
    now = running()
    limit = privilege.number(Path("/proc/sys/kernel/kexec_load_limit_reboot"))
    systemd = _systemd_version() if systemd_runs() else None
    return Facts(
        running=now,
        next=None if chosen is None else _next(*chosen, now),
        kernel=_try_kernel(now),
        holders=tuple(liveupdate.holders()) if os.geteuid() == 0 else (),
        kexec_file=kexec.has_kexec_file() if limit in (None, -1) else None,
        load_disabled=privilege.number(Path("/proc/sys/kernel/kexec_load_disabled")),
        load_limit=limit,
        lockdown=privilege.lockdown(),
        secure_boot=privilege.secure_boot(),
        scratch=_scratch(),
        capabilities=privilege.capabilities(),
        in_initial_pid_namespace=privilege.in_initial_pid_namespace(),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        shmem_huge=privilege.chosen(_SHMEM),
        memfd_noexec=privilege.number(Path("/proc/sys/vm/memfd_noexec")),
        systemd=systemd,
        unit={} if systemd is None else _unit(),
        daemon=daemon,
        image_directory=image_directory,
        images=image.obstacle(image_directory) or Carriage(ImageCarrier.name),
        images_free=_free(image_directory),
        memory_free=RunningKernel().free_memory(),
    )


def _next(kernel: KernelImage, initrd: int, line: str, now: Running) -> Next:
    return Next(image=kernel, initrd=initrd, problems=judge(kernel, now, line).problems)


def _try_kernel(now: Running) -> Carriage | None:
    """Try with a page of memory whether the device carries; only root may."""
    if not now.liveupdate or os.geteuid() != 0:
        return None
    return KernelCarrier().carriage()


def _free(directory: Path) -> int | None:
    there = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        return files.free_bytes(there)
    except OSError:
        return None


def _scratch() -> tuple[int, ...] | None:
    areas = layout.scratch()
    return None if areas is None else tuple(len(area) * layout.PAGE for area in areas)


def _systemd_version() -> int | None:
    found = re.search(r"systemd (\d+)", _systemctl("--version"))
    return None if found is None else int(found[1])


def _unit() -> dict[str, str]:
    said = _systemctl("show", _UNIT, f"--property={','.join(_PROPERTIES)}")
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _systemctl(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["systemctl", *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout
