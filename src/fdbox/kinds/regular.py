"""regular-file: a file by its path; without one, its bytes.

/ { compatible = "fdbox,regular-file-v1";
    file@0 {
        flags; position;
        path; device; inode; birth; type;      where it is (kinds/_paths.py), or
        folder; mode; uid; gid;                where it was before it was removed, and
        size; token; extents;                  its bytes (kinds/_dense.py), or
        twin = <component file>;               an open file of the same removed file that comes before
        lock@0 { kind; exclusive; start; length; };      a flock or an OFD lock
    };
};
"""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING

from fdbox.errors import FdtError, KernelError
from fdbox.fdt.tree import Node
from fdbox.kinds import _dense, _paths
from fdbox.kinds.base import Kind, Ordinary, numbered
from fdbox.kinds.freight import Made, Place
from fdbox.linux import locks, memfd, paths
from fdbox.linux.fd import OwnedFd
from fdbox.linux.locks import Lock
from fdbox.model import Description

if TYPE_CHECKING:
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Look, OpenFile

_KEPT_FLAGS = (
    os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_NOATIME | os.O_DIRECT | os.O_SYNC | os.O_DSYNC
)
_OF_MEMORY = (paths.TMPFS, paths.HUGETLBFS, paths.FUSE)
_DELETED = " (deleted)"
_MAX_POSITION = (1 << 63) - 1


class RegularFile(Ordinary):
    """A file on a disk."""

    name = "regular-file"
    about = "a file on a disk"
    keeps = (
        "path, checked to lead to the same file; access mode, flags, position, flock and OFD locks; "
        "of a removed file its bytes, mode, owner"
    )
    loses = "locks of processes (POSIX), leases; of a removed file times and extended attributes"
    compatible = "fdbox,regular-file-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one, of a file system whose files outlive the kernel."""
        if not stat.S_ISREG(seen.status.st_mode) or seen.is_path or not seen.link.startswith("/"):
            return False
        if seen.status.st_dev == memfd.device() or seen.link.startswith(("/secretmem", "/[")):
            return False
        return paths.filesystem(seen.fd) not in _OF_MEMORY

    def describe(self, seen: Look) -> Description:
        """Return its size and path."""
        return Description(self.name, seen.status.st_size, seen.label)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down where it is; send its bytes where it is nowhere."""
        self._write_open_file(file, node)
        if not _is_removed(file):
            _paths.write(file, node)
        elif (first := _first_of_inode(file, freight)) is not file:
            node.set_u32s("twin", list(freight.places[first]))
        else:
            _write_removed(file, node)
            _dense.send(file, node, freight)

    def _write_open_file(self, file: OpenFile, node: Node) -> None:
        node.set_u32("flags", file.look.flags & _KEPT_FLAGS)
        node.set_u64("position", os.lseek(file.fd, 0, os.SEEK_CUR))
        for number, lock in enumerate(locks.held_by(file.fd)):
            _write_lock(node.add(f"lock@{number}"), lock)
        if locks.has_lease(file.fd):
            node.set_texts("lost", ["a lease on the file"])

    def same(self, file: OpenFile, saved: Node, freight: Freight) -> bool:
        """Compare the open file description, and the bytes that were sent."""
        fresh = Node(saved.name)
        self._write_open_file(file, fresh)
        kept = [name for name in fresh.properties if name != "lost"]
        if fresh.children != saved.children or any(
            fresh.properties[name] != saved.properties[name] for name in kept
        ):
            return False
        if saved.has("path"):
            return _paths.leads_to(saved.path("path"), file.fd)
        return not saved.has("token") or _dense.same(file, saved, freight)

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return it, opened again."""
        flags, position = node.u32("flags") & _KEPT_FLAGS, node.u64("position")
        if position > _MAX_POSITION:
            raise FdtError(f"{node.name} has a position that no file has")
        fd, lost = _opened(node, flags, arrivals)
        try:
            os.lseek(fd.fileno(), position, os.SEEK_SET)
            lost += _lock_again(node, fd.fileno())
        except BaseException:
            fd.close()
            raise
        return Made(fd, lost)


# --- leaving ---------------------------------------------------------------------------------------------------------


def _is_removed(file: OpenFile) -> bool:
    return file.look.status.st_nlink == 0 or (
        file.look.link.endswith(_DELETED) and not _paths.leads_to(file.look.link, file.fd)
    )


def _first_of_inode(file: OpenFile, freight: Freight) -> OpenFile:
    device, inode = file.look.inode
    found = freight.company.with_inode(device, inode)
    return next((one for one in found if one.description.kind == file.description.kind), file)


def _write_removed(file: OpenFile, node: Node) -> None:
    status = os.fstat(file.fd)
    node.set_path("folder", os.path.dirname(file.look.link))  # noqa: PTH120 - text in, text out
    node.set_u32("mode", stat.S_IMODE(status.st_mode))
    node.set_u32("uid", status.st_uid)
    node.set_u32("gid", status.st_gid)
    if status.st_nlink:
        node.set_texts("lost", ["its other names: it is a file of its own now"])


def _write_lock(node: Node, lock: Lock) -> None:
    node.set_text("kind", lock.kind)
    node.set_u32("exclusive", int(lock.exclusive))
    node.set_u64("start", lock.start)
    node.set_u64("length", lock.length)


# --- arriving --------------------------------------------------------------------------------------------------------


def _opened(node: Node, flags: int, arrivals: Arrivals) -> tuple[OwnedFd, tuple[str, ...]]:
    if node.has("path"):
        if node.u32("type") != stat.S_IFREG:
            raise FdtError(f"{node.name} is no regular file")
        return _paths.open_again(node, flags), ()
    if node.has("twin"):
        twin = node.u32s("twin")
        if len(twin) != 2:
            raise FdtError(f"{node.name} does not say whose twin it is")
        return memfd.reopen(_regular(arrivals.file(Place(*twin)), node), flags), ()
    made, lost = _make_removed(node)
    with made:
        _dense.receive(node, arrivals, made.fileno())
        os.fchmod(made.fileno(), node.u32("mode") & 0o7777)
        if (node.u32("uid"), node.u32("gid")) != (os.geteuid(), os.getegid()):
            os.fchown(made.fileno(), node.u32("uid"), node.u32("gid"))
        return memfd.reopen(made.fileno(), flags), lost


def _regular(fd: int, node: Node) -> int:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise FdtError(f"{node.name} is the twin of something else")
    return fd


def _make_removed(node: Node) -> tuple[OwnedFd, tuple[str, ...]]:
    """Return a new file without a name, where the old one was if that can be."""
    try:
        with paths.find(node.path("folder"), os.O_DIRECTORY) as folder:
            return _make_in(folder.fileno()), ()
    except (KernelError, OSError) as error:
        return memfd.create("removed"), (f"that it is on a disk: it is in memory now ({error})",)


def _make_in(folder: int) -> OwnedFd:
    with memfd.reopen(folder, os.O_RDONLY | os.O_DIRECTORY) as opened:
        try:
            return OwnedFd(
                os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=opened.fileno())
            )
        except OSError:  # not every file system has O_TMPFILE
            name = f".fdbox-{secrets.token_hex(16)}"
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            made = OwnedFd(os.open(name, flags, 0o600, dir_fd=opened.fileno()))
            os.unlink(name, dir_fd=opened.fileno())
            return made


def _lock_again(node: Node, fd: int) -> tuple[str, ...]:
    """Take the locks; return a sentence for each that somebody else has meanwhile."""
    lost = []
    for child in numbered(node, "lock"):
        lock = Lock(
            child.text("kind"),
            bool(child.u32("exclusive")),
            child.u64("start"),
            child.u64("length"),
        )
        if lock.kind not in ("flock", "ofd") or max(lock.start, lock.length) > _MAX_POSITION:
            raise FdtError(f"{child.name} is a lock that no file has")
        try:
            locks.take(fd, lock)
        except OSError as error:
            lost.append(f"its {lock.kind} lock: {error.strerror}")
    return tuple(lost)


KINDS: tuple[Kind, ...] = (RegularFile(),)
