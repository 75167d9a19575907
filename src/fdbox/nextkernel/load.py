"""The running kernel, as a live update needs it: how it is named, what it has left, and how it gives way to the next."""

from __future__ import annotations

import os
import time

from fdbox.errors import KernelError
from fdbox.linux import incarnation, kexec, meminfo


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
        """Start the next kernel.

        Raises:
            KernelError: the kernel stays.
        """
        kexec.reboot_kexec()
        raise KernelError("reboot(2) came back without an error", remedy="see dmesg")
