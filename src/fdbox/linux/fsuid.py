"""Files as another user sees them (setfsuid(2))."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING

from fdbox.errors import KernelError
from fdbox.linux.syscalls import libc

if TYPE_CHECKING:
    from collections.abc import Iterator

_ASK = ctypes.c_uint32(0xFFFFFFFF)  # no user: changes nothing, and returns who it is


@contextlib.contextmanager
def acting_as(user: int) -> Iterator[None]:
    """Have this thread reach files with the rights of a user (of root's, only those that root's groups have are left).

    Without root, nothing changes: nobody gets more than this process may. The kernel makes the process undumpable, and lets
    the thread forget PR_SET_PDEATHSIG: not for the main thread of the service.

    KernelError: EPERM, the kernel did not let it.
    """
    before = os.geteuid()
    if before != 0 or user == 0:
        yield
        return
    libc.setfsuid(ctypes.c_uint32(user))
    try:
        if ctypes.c_uint32(libc.setfsuid(_ASK)).value != user:
            raise KernelError(f"cannot act as user {user}", remedy="it needs CAP_SETUID")
        yield
    finally:
        libc.setfsuid(ctypes.c_uint32(before))
