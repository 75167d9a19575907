"""Loading the next kernel and jumping into it (kexec_file_load(2), reboot(2), kernel/kexec_file.c)."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path

from fdbox.errors import KernelError
from fdbox.linux.syscalls import last_error, libc, syscall

# include/uapi/linux/kexec.h
KEXEC_FILE_UNLOAD = 0x1
KEXEC_FILE_ON_CRASH = 0x2
KEXEC_FILE_NO_INITRAMFS = 0x4

_RB_KEXEC = 0x45584543  # LINUX_REBOOT_CMD_KEXEC, include/uapi/linux/reboot.h
_RB_AUTOBOOT = 0x01234567  # LINUX_REBOOT_CMD_RESTART
_LOADED = Path("/sys/kernel/kexec_loaded")
_KHO_OUT = Path("/sys/kernel/debug/kho/out")
_LIVEUPDATE = Path("/dev/liveupdate")

_LOAD_REMEDIES = {
    errno.EPERM: "run with CAP_SYS_BOOT; see the sysctls kernel.kexec_load_disabled and "
    "kernel.kexec_load_limit_reboot, and lockdown",
    errno.ENOEXEC: "the file is no kernel for this machine, or not relocatable (CONFIG_RELOCATABLE)",
    errno.EBUSY: "another kexec load or jump is running: wait for it",
    errno.EADDRNOTAVAIL: "initrd does not fit the KHO scratch area: make it smaller, or boot with a larger kho_scratch=",
    errno.EINVAL: "the command line is longer than the kernel takes, or a flag is unknown",
    errno.EKEYREJECTED: "the kernel's signature is not trusted: enrol its key or sign it",
    errno.ENODATA: "the kernel image carries no signature and this system requires one",
    errno.ENOMEM: "free memory",
    errno.ENOSYS: "the running kernel needs CONFIG_KEXEC_FILE",
    errno.EBADF: "pass descriptors that are open for reading",
}
_JUMP_REMEDIES = {
    errno.EPERM: "run with CAP_SYS_BOOT, in the initial pid namespace",
    errno.EINVAL: "nothing is loaded: load the next kernel first",
    errno.EBUSY: "another kexec load is running, or tasks could not be frozen: try again",
    errno.ENOSYS: "the running kernel needs CONFIG_KEXEC",
}


class KexecError(KernelError):
    """Raised when the kernel refused to load the next kernel, or to jump into it."""


def _failed(what: str, error: OSError, remedies: dict[int, str]) -> KexecError:
    code = error.errno or 0
    return KexecError(f"{what}: {error.strerror}", errno=code, remedy=remedies.get(code))


def kexec_file_load(kernel_fd: int, initrd_fd: int | None, cmdline: str, flags: int = 0) -> None:
    """Load the next kernel; the one loaded before is replaced.

    Args:
        kernel_fd: The image, borrowed, open for reading.
        initrd_fd: The initrd, borrowed; None for none (KEXEC_FILE_NO_INITRAMFS is then added).
        cmdline: Its command line.
        flags: KEXEC_FILE_*.

    Raises:
        KexecError: EPERM, ENOEXEC, EBUSY, EADDRNOTAVAIL, EINVAL, EKEYREJECTED, ENODATA, ENOMEM, ENOSYS, EBADF.
    """
    text = cmdline.encode() + b"\0"
    flags |= KEXEC_FILE_NO_INITRAMFS if initrd_fd is None else 0
    initrd = -1 if initrd_fd is None else initrd_fd
    try:
        # long kexec_file_load(int kernel_fd, int initrd_fd, unsigned long cmdline_len, const char *cmdline, unsigned long flags)
        syscall("kexec_file_load", kernel_fd, initrd, len(text), text, flags)
    except OSError as error:
        raise _failed("cannot load the next kernel", error, _LOAD_REMEDIES) from error


def has_kexec_file() -> bool | None:
    """Return whether the kernel has kexec_file_load(2), which is asked to load a file that is none; None if we may not ask.

    Where loads are counted (kernel.kexec_load_limit_reboot), asking counts as one.
    """
    try:
        syscall("kexec_file_load", -1, -1, 0, None, 0)
    except OSError as error:
        return None if error.errno == errno.EPERM else error.errno != errno.ENOSYS
    return True


def kexec_unload() -> None:
    """Drop the loaded kernel; nothing happens if there is none. KexecError: EPERM, EBUSY, ENOSYS."""
    try:
        syscall("kexec_file_load", -1, -1, 0, None, KEXEC_FILE_UNLOAD)
    except OSError as error:
        raise _failed("cannot unload the next kernel", error, _LOAD_REMEDIES) from error


def kexec_loaded() -> bool:
    """Return whether a kernel is loaded, by whomever; False where the kernel has no kexec."""
    try:
        return _LOADED.read_text(encoding="ascii").strip() == "1"
    except FileNotFoundError:
        return False


def reboot_kexec() -> None:
    """Jump into the loaded kernel; returns only by an error. Does not sync(2).

    Live update sessions are serialised in this call (kernel_kexec, kernel/kexec_core.c). If that fails its errno comes
    back and the sessions are as before.

    Raises:
        KexecError: EPERM, EINVAL, EBUSY, or what a session's freeze failed with.
    """
    libc.reboot(ctypes.c_int(_RB_KEXEC))
    raise _failed("cannot jump into the next kernel", last_error(), _JUMP_REMEDIES)


def reboot() -> None:
    """Start the machine anew at once; returns only by an error. Does not sync(2).

    Raises:
        KexecError: EPERM.
    """
    libc.reboot(ctypes.c_int(_RB_AUTOBOOT))
    raise _failed("cannot reboot", last_error(), _JUMP_REMEDIES)


def handover_active() -> bool:
    """Return whether the running kernel hands memory over (Kexec HandOver is compiled in and on).

    `kho_enable` itself is not shown anywhere, and `kho=` in /proc/cmdline proves nothing: the default is a matter of
    configuration, and set-up can fail. Two things exist only after it succeeded: /sys/kernel/debug/kho/out
    (CONFIG_KEXEC_HANDOVER_DEBUGFS, debugfs mounted) and /dev/liveupdate (CONFIG_LIVEUPDATE). Where neither is visible the
    answer is False, also for a kernel with KHO but without both.
    """
    return _KHO_OUT.is_dir() or _LIVEUPDATE.exists()
