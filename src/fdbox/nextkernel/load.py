"""The running kernel, as a live update needs it: how it is named, what it has left, and how it gives way to the next."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import NoReturn

from fdbox.errors import KernelError
from fdbox.linux import incarnation, kexec, meminfo
from fdbox.nextkernel import inspect, running, verdict

#: what a shutdown may take: systemd gives each unit 90 s
_PATIENCE = 1800.0


class RunningKernel:
    """The kernel this runs on."""

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

    def jump(self) -> None:
        """Start the next kernel: at once, or where systemd is PID 1 after it has ended all else in order.

        Raises:
            KernelError: the kernel stays.
        """
        if systemd_runs():
            _let_systemd("kexec")
        kexec.reboot_kexec()
        raise KernelError("reboot(2) came back without an error", remedy="see dmesg")

    def reboot(self) -> None:
        """Start the machine anew; as `jump`."""
        if systemd_runs():
            _let_systemd("reboot")
        kexec.reboot()
        raise KernelError("reboot(2) came back without an error", remedy="see dmesg")


def systemd_runs() -> bool:
    """Return whether systemd is PID 1 (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def _let_systemd(what: str) -> NoReturn:
    """Have systemd end everything, and then start a kernel; this process is spared, or ended, on the way.

    `systemctl kexec` takes the kernel that is loaded.
    """
    command = ["systemctl", what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise KernelError(
            f"cannot run systemctl: {error.strerror}", errno=error.errno or 0
        ) from error
    if done.returncode:
        raise KernelError(
            f"{' '.join(command)} failed: {done.stderr.strip()}", remedy="see `journalctl -b`"
        )
    threading.Event().wait(_PATIENCE)
    raise KernelError(
        f"{' '.join(command)} was accepted, and this kernel still runs after {_PATIENCE:.0f} s",
        remedy="see `systemctl list-jobs` for what it waits for",
    )
