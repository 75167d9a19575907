"""System calls that neither Python nor glibc has a function for."""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from fdbox.errors import KernelError

_X86_64 = {
    "kcmp": 312,
    "renameat2": 316,
    "kexec_file_load": 320,
    "openat2": 437,
}  # arch/x86/entry/syscalls/syscall_64.tbl
_GENERIC = {
    "kcmp": 272,
    "renameat2": 276,
    "kexec_file_load": 294,
    "openat2": 437,
}  # scripts/syscall.tbl
_PPC = {
    "kcmp": 354,
    "renameat2": 357,
    "kexec_file_load": 382,
    "openat2": 437,
}  # arch/powerpc/kernel/syscalls/syscall.tbl
_NUMBERS = {
    "x86_64": _X86_64,
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
    "ppc64le": _PPC,
}

libc: ctypes.CDLL = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def last_error() -> OSError:
    """Return the error of the last call through `libc`, as the OSError class that fits its errno."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def syscall(name: str, *arguments: int | bytes | None) -> int:
    """Return what the system call returns.

    Integers are passed as unsigned long (negative ones sign-extended), bytes as a pointer.

    Raises:
        OSError: as the kernel gives it.
        KernelError: the number is not known for this architecture (ENOSYS).
    """
    table = _NUMBERS.get(platform.machine())
    if table is None:
        raise KernelError(
            f"the system call {name} has no known number on {platform.machine()}",
            errno=errno.ENOSYS,
            remedy="add the architecture to fdbox/linux/syscalls.py",
        )
    values = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    result = int(libc.syscall(ctypes.c_long(table[name]), *values))
    if result == -1:
        raise last_error()
    return result
