"""A file by its path, with what it takes to know that it is the same file.

    path; device; inode; birth; type;      in a node of the kind's own; birth 0: the file system does not tell

Another program may have put something else in its place before the next kernel's fdbox comes: it is looked for without
opening anything or following a symbolic link, and opened only when it is known to be the one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fdbox.errors import KernelError
from fdbox.linux import fdinfo, handles, memfd, paths
from fdbox.linux.paths import Identity

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.look import OpenFile
    from fdbox.linux.fd import OwnedFd
    from fdbox.linux.handles import Handle

_CHANGED = "it was renamed, replaced or removed; put the file that is there now into the box"


def leads_to(path: str, fd: int) -> bool:
    """Return whether a path leads to the file of a descriptor, as seen from here."""
    try:
        with paths.find(path) as found:
            return paths.identity(found.fileno()) == paths.identity(fd)
    except KernelError:
        return False


def write(file: OpenFile, node: Node) -> None:
    """Write down where a file is and what it is; CannotCarry if that path does not lead to it."""
    if not leads_to(file.look.link, file.fd):
        raise file.refuse(
            f"{file.look.label} does not lead to it from here",
            "it was renamed or removed, or is in another mount namespace than fdbox: put it into the box anew",
        )
    write_identity(node, file.look.link, paths.identity(file.fd))


def write_by_handle(file: OpenFile, handle: Handle, node: Node, what: str) -> None:
    """Write down where a file is of which the kernel tells the handle; CannotCarry if it is nowhere. `what` is for that."""
    try:
        with handles.open_handle(handle) as found:
            path = fdinfo.link_of(found.fileno())
            identity = paths.identity(found.fileno())
            if leads_to(path, found.fileno()) and identity.inode == handle.inode:
                write_identity(node, path, identity)
                return
    except KernelError as error:
        raise file.refuse(
            f"what {what} is of (inode {handle.inode}) is not found: {error.message}",
            f"remove that; {error.remedy}",
        ) from error
    raise file.refuse(
        f"no path leads to what {what} is of (inode {handle.inode})",
        "remove that: the file was removed, or is in another mount namespace",
    )


def write_identity(node: Node, path: str, found: Identity) -> None:
    """Write down a path, and what is there."""
    node.set_path("path", path)
    node.set_u64("device", found.device)
    node.set_u64("inode", found.inode)
    node.set_u64("birth", found.born)
    node.set_u32("type", found.type)


def read_identity(node: Node) -> Identity:
    """Return what was at a path that was written down."""
    return Identity(node.u64("device"), node.u64("inode"), node.u64("birth"), node.u32("type"))


def find(node: Node, flags: int = 0) -> OwnedFd:
    """Return an O_PATH descriptor of the file that was written down.

    Raises:
        KernelError: it is not there any more, or something else is.
    """
    path, saved = node.path("path"), read_identity(node)
    found = paths.find(path, flags)
    if not saved.is_same(paths.identity(found.fileno())):
        found.close()
        raise KernelError(f"{paths.shown(path)} is another file than it was", remedy=_CHANGED)
    return found


def open_again(node: Node, flags: int) -> OwnedFd:
    """Return the file that was written down, opened with O_* that neither create nor truncate; errors as `find`."""
    with find(node) as found:
        return memfd.reopen(found.fileno(), flags & ~(os.O_CREAT | os.O_TRUNC | os.O_EXCL))
