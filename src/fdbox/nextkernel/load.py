"""The running kernel, as a live update needs it: how it is named, what it has left, and how it gives way to the next."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from fdbox.errors import KernelError
from fdbox.linux import incarnation, kexec, meminfo
from fdbox.nextkernel import inspect, running, verdict

#: what a shutdown may take: systemd gives each unit 90 s
_PATIENCE = 1800.0
#: between a SIGTERM to all of a unit's processes, and the daemon's own
_SAME_MOMENT = 5.0


class RunningKernel:
    """The kernel this runs on."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def incarnation(self) -> str:
        """Return the boot id."""
        return incarnation.boot_id()

    def realtime(self) -> int:
        """Return nanoseconds of CLOCK_REALTIME."""
        return time.time_ns()

    def free_memory(self) -> int:
        """Return the bytes that can be taken without driving anything into the OOM killer."""
        return meminfo.available()

    def judge(self, kernel: int, command_line: str) -> verdict.Verdict:
        """Return what a kernel image would make of what this kernel leaves; KernelImageInvalid."""
        return verdict.judge(inspect.inspect(kernel), running.running(), command_line)

    def load(self, kernel: int, initrd: int | None, command_line: str) -> None:
        """Load the next kernel with kexec_file_load(2), the only way that hands memory over; errors as there."""
        kexec.kexec_file_load(kernel, initrd, command_line)

    def unload(self) -> None:
        """Drop what is loaded."""
        kexec.kexec_unload()

    def sync(self) -> None:
        """Write back what the file systems hold."""
        os.sync()

    def give_way(self) -> None:
        """Have `jump` and `reboot` return when systemd has begun."""
        self._ended.set()

    def jump(self) -> None:
        """Start the next kernel: at once, or where systemd is PID 1 after it has ended all else in order.

        Returns if systemd ends this process meanwhile (`give_way`), and goes on without it.

        Raises:
            KernelError: the kernel stays.
        """
        if systemd_runs():
            _let_systemd("kexec", self._ended)
            return
        kexec.reboot_kexec()
        raise KernelError("reboot(2) came back without an error", remedy="see dmesg")

    def reboot(self) -> None:
        """Start the machine anew; as `jump`."""
        if systemd_runs():
            _let_systemd("reboot", self._ended)
            return
        kexec.reboot()
        raise KernelError("reboot(2) came back without an error", remedy="see dmesg")


def systemd_runs() -> bool:
    """Return whether systemd is PID 1 (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def _let_systemd(what: str, ended: threading.Event) -> None:
    """Have systemd end everything, and then start a kernel; this process is spared, or ended, and then it returns.

    `systemctl kexec` takes the kernel that is loaded. What ends this process ends systemctl, too, which may not have
    heard yet that its call was accepted.
    """
    command = ["systemctl", what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise KernelError(
            f"cannot run systemctl: {error.strerror}", errno=error.errno or 0
        ) from error
    if done.returncode == -signal.SIGTERM and ended.wait(_SAME_MOMENT):
        return
    if done.returncode:
        raise KernelError(
            f"{' '.join(command)} failed: {done.stderr.strip()}", remedy="see `journalctl -b`"
        )
    if ended.wait(_PATIENCE):
        return
    raise KernelError(
        f"{' '.join(command)} was accepted, and this kernel still runs after {_PATIENCE:.0f} s",
        remedy="see `systemctl list-jobs` for what it waits for",
    )
