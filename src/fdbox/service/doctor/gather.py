"""Looking at this machine for facts, as far as this process may."""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import fdbox
from fdbox.errors import KernelError
from fdbox.handover.carriers import imagefolder
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.linux import files, kcmp, kexec, lasting, layout, liveupdate, privilege
from fdbox.linux.fd import open_path
from fdbox.model import Carriage
from fdbox.nextkernel import command_line
from fdbox.nextkernel.load import RunningKernel, systemd_runs
from fdbox.nextkernel.running import running
from fdbox.nextkernel.verdict import judge
from fdbox.service.doctor.facts import Facts, Next, Process

if TYPE_CHECKING:
    from fdbox.nextkernel.running import Running
    from fdbox.service.doctor.facts import Asked, Daemon

_PROC = Path("/proc/self/fdinfo")
_SYSCTL = Path("/proc/sys")
_SHMEM = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_RTC = Path("/sys/class/rtc")
_UNIT = "fdbox.service"
_PROPERTIES = (
    "LoadState",
    "FileDescriptorStoreMax",
    "FileDescriptorStorePreserve",
    "LimitNOFILE",
    "DefaultDependencies",
    "SurviveFinalKillSignal",
)


def gather(asked: Asked) -> Facts:
    """Return the facts of this machine; takes a second or two."""
    now = running()
    limit = privilege.number(_SYSCTL / "kernel/kexec_load_limit_reboot")
    systemd = _systemd_version() if systemd_runs() else None
    line = command_line.effective(_text(Path("/proc/cmdline")), now.configuration)
    return Facts(
        asked=asked,
        running=now,
        kho_said=command_line.switch(line, "kho"),
        luo_said=command_line.switch(line, "liveupdate"),
        next=_next(asked, now),
        kernel=_try_kernel(now),
        holders=tuple(liveupdate.holders()) if os.geteuid() == 0 else None,
        kexec_file=kexec.has_kexec_file() if limit in (None, -1) else None,
        load_disabled=privilege.number(_SYSCTL / "kernel/kexec_load_disabled"),
        load_limit=limit,
        lockdown=privilege.lockdown(),
        secure_boot=privilege.secure_boot(),
        appraised=privilege.appraised_kernels(),
        scratch=_scratch(),
        process=_process(asked.daemon),
        proc=_PROC.is_dir(),
        descriptors_at_most=privilege.number(_SYSCTL / "fs/nr_open"),
        no_kcmp=_no_kcmp(),
        shmem_huge=privilege.chosen(_SHMEM),
        memfd_noexec=privilege.number(_SYSCTL / "vm/memfd_noexec"),
        clock_error=_clock_error(),
        systemd=systemd,
        unit={} if systemd is None else _unit(),
        version=fdbox.__version__,
        images=_images(asked),
        images_free=_free(asked.image_directory),
        images_may_be_in_memory=_may_be_in_memory(asked.image_directory),
        memory_free=_memory_free(),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


# --- the kernel ------------------------------------------------------------------------------------------------------


def _next(asked: Asked, now: Running) -> Next | None:
    if asked.chosen is None:
        return None
    kernel, initrd, line = asked.chosen
    return Next(image=kernel, initrd=initrd, problems=judge(kernel, now, line).problems)


def _try_kernel(now: Running) -> Carriage | None:
    """Try with a page of memory whether the device carries; only root may."""
    if not now.liveupdate or os.geteuid() != 0:
        return None
    return KernelCarrier().carriage()


def _scratch() -> tuple[int, ...] | None:
    areas = layout.scratch()
    return None if areas is None else tuple(len(area) * layout.PAGE for area in areas)


# --- who updates -----------------------------------------------------------------------------------------------------


def _process(daemon: Daemon | None) -> Process:
    """Return the daemon, as far as it is seen from here; this process where none answers."""
    if daemon is None:
        return _look_at("this process", "self")
    if not daemon.pid:
        return Process(who="fdbox, in another pid namespace,")
    return _look_at(f"fdbox (pid {daemon.pid})", daemon.pid)


def _look_at(who: str, process: int | str) -> Process:
    return Process(
        who=who,
        capabilities=privilege.capabilities(process),
        pid_namespace=privilege.in_initial_namespace("pid", process),
        user_namespace=privilege.in_initial_namespace("user", process),
        descriptors=privilege.file_limit(process),
    )


def _no_kcmp() -> str:
    with open_path("/dev/null", os.O_RDONLY) as null:
        try:
            kcmp.order(null.fileno(), null.fileno())
        except KernelError as error:
            return error.message
    return ""


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


# --- memory, files, the clock ----------------------------------------------------------------------------------------


def _memory_free() -> int | None:
    try:
        return RunningKernel().free_memory()
    except OSError:
        return None


def _clock_error() -> int | None:
    """Return the seconds by which the clock that the kernel starts with is ahead."""
    try:
        clocks = sorted(_RTC.iterdir())
    except OSError:
        return None
    used = [clock for clock in clocks if privilege.number(clock / "hctosys") == 1] or clocks
    seconds = privilege.number(used[0] / "since_epoch") if used else None
    return None if seconds is None else seconds - int(time.time())


def _images(asked: Asked) -> Carriage | None:
    if asked.image_directory is None:
        return Carriage(None, "no place for images is known", "name one: [image] directory")
    if asked.daemon is not None and os.geteuid() not in (0, asked.daemon.uid):
        return None
    return imagefolder.obstacle(asked.image_directory) or Carriage(ImageCarrier.name)


def _free(directory: Path | None) -> int | None:
    if directory is None:
        return None
    try:
        return files.free_bytes(imagefolder.nearest(directory))
    except OSError:
        return None


def _may_be_in_memory(directory: Path | None) -> bool:
    with suppress(OSError):
        return directory is not None and lasting.in_memory(imagefolder.nearest(directory)) is None
    return False  # it cannot be opened, as `_images` says
