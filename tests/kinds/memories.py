"""How to look at memory: everything that has to be the same afterwards."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from typing import TYPE_CHECKING, Any

from fdbox.linux import fdinfo, memfd
from fdbox.linux.fd import OwnedFd

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1 << 20
#: struct posix_acl_xattr_header, and entries of tag, permissions, id (include/uapi/linux/posix_acl_xattr.h):
#: user::rw-, user:1234:r--, group::---, mask::r--, other::---
ACL = bytes.fromhex(
    "02000000 0100 0600 ffffffff 0200 0400 d2040000 0400 0000 ffffffff 1000 0400 ffffffff 2000 0000 ffffffff"
)


def see(fd: int, *, holes: bool = False) -> dict[str, Any]:
    """Return what is seen of one descriptor, as JSON has it; `holes` where they have to be the same, too."""
    status = os.fstat(fd)
    with memfd.reopen(fd, os.O_RDONLY) as own:
        content = hashlib.sha256()
        while piece := os.read(own.fileno(), MIB):
            content.update(piece)
        xattrs = _xattrs(own.fileno())
    return {
        "flags": fcntl.fcntl(fd, fcntl.F_GETFL),
        "position": os.lseek(fd, 0, os.SEEK_CUR),
        "size": status.st_size,
        "content": content.hexdigest(),
        "holes": memfd.data_extents(fd) if holes else None,
        "mode": oct(status.st_mode),
        "owner": [status.st_uid, status.st_gid],
        "seals": int(memfd.get_seals(fd)),
        "names": status.st_nlink,
        "xattrs": xattrs,
        "locks": fdinfo.read(fd).extra.get("lock", ""),
    }


def _xattrs(fd: int) -> dict[str, str]:
    try:
        names = os.listxattr(fd)
    except OSError:  # hugetlbfs
        return {}
    return {name: os.getxattr(fd, name).hex() for name in sorted(names)}


def see_all(fds: Mapping[str, int], *, holes: bool = False) -> dict[str, Any]:
    """Return what is seen of every descriptor, and which of them are of one memory, and of one open file."""
    seen: dict[str, Any] = {name: see(fd, holes=holes) for name, fd in fds.items()}
    inodes = [os.fstat(fd)[1:3] for fd in fds.values()]
    seen["same memory"] = [inodes.index(one) for one in inodes]
    seen["same open file"] = _moving_together(fds)
    return seen


def _moving_together(fds: Mapping[str, int]) -> list[list[str]]:
    """Return, of each, which ones move when it does."""
    found = []
    for fd in fds.values():
        before = {name: os.lseek(other, 0, os.SEEK_CUR) for name, other in fds.items()}
        os.lseek(fd, 7, os.SEEK_CUR)
        moved = {name: os.lseek(other, 0, os.SEEK_CUR) for name, other in fds.items()}
        found.append([name for name in fds if moved[name] != before[name]])
        os.lseek(fd, -7, os.SEEK_CUR)
    return found


def mapped(size: int, content: bytes) -> OwnedFd:
    """Return the memory of a shared anonymous mapping that is gone."""
    with mmap.mmap(-1, size) as area:
        area[: len(content)] = content
        return of_mapping("/dev/zero")


def of_mapping(name: str) -> OwnedFd:
    """Return the file of this process's mapping of that name; it needs CAP_CHECKPOINT_RESTORE."""
    with open("/proc/self/maps") as lines:  # noqa: PTH123
        (where,) = [line.split()[0] for line in lines if name in line]
    return OwnedFd(os.open(f"/proc/self/map_files/{where}", os.O_RDWR | os.O_CLOEXEC))
