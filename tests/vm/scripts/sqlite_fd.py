"""SQLite on a descriptor: it resolves symbolic links and opens with O_NOFOLLOW, so /proc/self/fd/N would become a name.

Its own interface for that (sqlite3_vfs.xSetSystemCall) lets `lstat` and `open` follow the link instead.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sqlite3
import sys
from pathlib import Path

_SET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)


class _Vfs(ctypes.Structure):
    """struct sqlite3_vfs (sqlite3.h), up to xSetSystemCall."""

    _fields_ = [  # type: ignore[mutable-override]  # ctypes wants it so
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        ("methods", ctypes.c_void_p * 13),
        ("xSetSystemCall", _SET),
    ]


_libc = ctypes.CDLL(None, use_errno=True)


@_OPEN  # type: ignore[untyped-decorator]  # ctypes
def _open(path: bytes, flags: int, mode: int) -> int:
    return int(_libc.open(ctypes.c_char_p(path), flags & ~os.O_NOFOLLOW, mode))


@functools.cache
def _follow_links() -> None:
    maps = Path("/proc/self/maps").read_text().splitlines()
    library = ctypes.CDLL(next(line.split()[-1] for line in maps if "libsqlite3" in line))
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    vfs = library.sqlite3_vfs_find(None)
    replaced = {
        b"lstat": ctypes.cast(_libc.stat, ctypes.c_void_p),
        b"open": ctypes.cast(_open, ctypes.c_void_p),
    }
    for name, function in replaced.items():
        status = vfs.contents.xSetSystemCall(ctypes.cast(vfs, ctypes.c_void_p), name, function)
        if status:
            sys.exit(f"SQLite does not let {name!r} be replaced: {status}")


def connect(fd: int, *, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection to the database in a descriptor."""
    _follow_links()
    options = "?mode=ro&immutable=1" if read_only else ""
    return sqlite3.connect(f"file:/proc/self/fd/{fd}{options}", uri=True)
