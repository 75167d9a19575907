"""fanotify: marks on files, mounts and file systems, by their paths (fanotify(7)).

    / { compatible = "fdbox,fanotify-v1";
        file@0 {
            flags; event-flags;         FAN_* of fanotify_init(2); O_* of the files in its events
            mark@0 {
                scope; mark-flags;      FAN_MARK_INODE, FAN_MARK_MOUNT or FAN_MARK_FILESYSTEM; other FAN_MARK_*
                events; ignored;
                path; device; inode; birth; type;      of a mount, or a file system, where it is mounted
            };
        };
    };

A group that is asked for permission (FAN_CLASS_CONTENT) is refused: programs wait for its answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.errors import FdtError, KernelError
from fdbox.kinds import _paths
from fdbox.kinds.base import Kind, Ordinary, anonymous, numbered
from fdbox.kinds.freight import Made
from fdbox.linux import fanotify, handles, paths
from fdbox.linux.fanotify import Mark
from fdbox.linux.fd import queued

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd

_SCOPES = (fanotify.MARK_INODE, fanotify.MARK_MOUNT, fanotify.MARK_FILESYSTEM)


class Fanotify(Ordinary):
    """A group of marks."""

    name = "fanotify"
    about = "marks on files, mounts and file systems"
    keeps = "what is marked, by path, checked to be the same file; events, what is ignored, flags"
    loses = "events that were not read, and what happens between the kernels; a group that is asked for permission is refused"
    compatible = "fdbox,fanotify-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return anonymous("fanotify")(seen)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down every mark, and how much was not read."""
        group = fanotify.inspect(file.fd)
        if group.flags & fanotify.CLASSES:
            raise file.refuse(
                "programs wait for its answers (FAN_CLASS_CONTENT)",
                "let its program make it again in the next kernel",
            )
        node.set_u32("flags", group.flags)
        node.set_u32("event-flags", group.event_flags)
        for index, mark in enumerate(group.marks):
            _write_mark(file, mark, node.add(f"mark@{index}"))
        if waiting := queued(file.fd):
            node.set_texts("lost", [f"events that were not read ({waiting} bytes)"])

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return a group with the same marks; one that cannot be is told, and the others go on."""
        if node.u32("flags") & fanotify.CLASSES:
            raise FdtError(f"{node.name} is a group that is asked for permission")
        made = fanotify.create(node.u32("flags"), node.u32("event-flags"))
        try:
            lost = tuple(_mark_again(made.fileno(), node))
        except BaseException:
            made.close()
            raise
        return Made(made, lost)


def _write_mark(file: OpenFile, mark: Mark, node: Node) -> None:
    node.set_u32("scope", mark.scope)
    node.set_u32("mark-flags", mark.flags)
    node.set_u32("events", mark.events)
    node.set_u32("ignored", mark.ignored)
    if mark.file is not None:
        _paths.write_by_handle(file, mark.file, node, "a mark")
        return
    if mark.scope == fanotify.MARK_MOUNT:
        path = handles.mount_point(mark.number)
    else:
        path = next(handles.mounts_of(mark.number), None)
    if path is None:
        raise file.refuse(
            "a mount that it has marked is not seen from here",
            "remove the mark, or run fdbox in that mount namespace",
        )
    with paths.find(path) as found:
        _paths.write_identity(node, path, paths.identity(found.fileno()))


def _mark_again(made: int, node: Node) -> Iterator[str]:
    for child in numbered(node, "mark"):
        mark = Mark(
            child.u32("scope"), child.u32("mark-flags"), child.u32("events"), child.u32("ignored")
        )
        if mark.scope not in _SCOPES:
            raise FdtError(f"{child.name} is on something that cannot be marked")
        try:
            with _paths.find(child) as found:
                fanotify.add(made, f"/proc/self/fd/{found.fileno()}", mark)
        except KernelError as error:
            yield f"its mark of {child.path('path')}: {error.message}"


KINDS: tuple[Kind, ...] = (Fanotify(),)
