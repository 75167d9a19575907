"""tmpfs-file: a file of tmpfs, with a name (POSIX shared memory in /dev/shm) or without (O_TMPFILE, unlinked).

The component is as `_memory.py` has it, and in each `memory@N`

    nlink;                           how many names it had
    link@0 { path; };                one for each name that is known: one that an open file was opened by

and in a `file@N` that was opened by one of these, its number: `link`. It is opened by it again, for this is how a name is
known the next time.

What has no name the kernel carries in place, and it arrives as a memfd: both are files of the same file system, and
only mounts tell them apart. What has a name the kernel refuses: it goes as a copy, and is made again on the tmpfs that
is there then, under its names. tmpfs is empty after a kexec, so that takes a directory that somebody has made before;
and a name that is free, for nothing is ever overwritten. Where it cannot have a name, it arrives without, and that is
told.

Only the owner of the file gets it back under its name, and only where he may make files: a box must be no way to
have the names of others made again.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from fdbox.errors import FdboxError, FdtError, KernelError
from fdbox.fdt.tree import Node
from fdbox.kinds import _dense, _memory
from fdbox.kinds._memory import Memories
from fdbox.kinds.base import Kind, numbered
from fdbox.kinds.freight import Made
from fdbox.linux import memfd, paths
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import Description

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdbox.kinds._memory import Group
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Look, OpenFile


class Home(NamedTuple):
    """A directory where a file is to have a name; `directory` is O_PATH."""

    path: str
    directory: OwnedFd
    name: str


class Tmpfs(Memories):
    """A regular file of a mounted tmpfs."""

    name = "tmpfs-file"
    about = "a file of tmpfs: POSIX shared memory, O_TMPFILE, unlinked files"
    keeps = (
        "bytes, holes, size, mode, owner, extended attributes, names where their directories are there "
        "again, and of each open file description access mode, flags, position"
    )
    loses = (
        "inode number, file locks, times, security labels; names that no open file was opened by; one "
        "without a name is a memfd afterwards, and cannot be given a name"
    )
    compatible = "fdbox,tmpfs-file-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is of a tmpfs that somebody has mounted."""
        return (
            seen.status.st_dev != memfd.device()
            and _memory.is_regular(seen)
            and memfd.is_shmem(seen.fd)
        )

    def describe(self, seen: Look) -> Description:
        """Return its size, and its path."""
        return Description(self.name, seen.status.st_size, seen.label)

    def send(self, group: Group, node: Node, freight: Freight) -> tuple[str, ...]:
        """Send the memory itself if it has no name, else a copy and the names."""
        file = group.first
        count = os.fstat(file.fd).st_nlink
        node.set_u32("nlink", count)
        if not count and _memory.send_in_place(file, node, freight):
            return ()
        _dense.send(file, node, freight)
        names = _paths(group)
        _write_links(node, names)
        return _unknown_names(count - len(names))

    def save(self, files: Sequence[OpenFile], freight: Freight) -> Node:
        """Return the component; errors as in `CarriedKind.save`."""
        root = super().save(files, freight)
        for index, file in enumerate(files):
            node = root.child(f"file@{index}")
            memory = root.child(f"memory@{node.u32('memory')}")
            names = [link.path("path") for link in numbered(memory, "link")]
            if file.look.link in names:
                node.set_u32("link", names.index(file.look.link))
        return root

    def open(self, file: Node, saved: Node, memory: OwnedFd, flags: int) -> OwnedFd:
        """Return a file opened anew, by its name if it has it again."""
        if file.has("link"):
            path = saved.child(f"link@{file.u32('link')}").path("path")
            if (named := _find(path, os.fstat(memory.fileno()))) is not None:
                with named:
                    return memfd.reopen(named.fileno(), flags)
        return super().open(file, saved, memory, flags)

    def unchanged(self, group: Group, saved: Node, freight: Freight) -> bool:
        """Return whether it is as it was, and has the names that it had."""
        fresh = Node(saved.name)
        _write_links(fresh, _paths(group))
        return (
            os.fstat(group.first.fd).st_nlink == saved.u32("nlink")
            and fresh.children == list(numbered(saved, "link"))
            and super().unchanged(group, saved, freight)
        )

    def make(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return what came itself, or a new file from the copy, with its names where it can have them."""
        if not _memory.is_copy(node):
            return _memory.take_in_place(node, arrivals)
        names = [link.path("path") for link in numbered(node, "link")]
        homes: list[Home] = []
        lost: list[str] = []
        try:
            for path in names:
                try:
                    homes.append(_home(path, node.u32("uid"), arrivals.owner))
                except (OSError, KernelError) as error:
                    lost.append(_lost_name(path, error))
            return _make(node, arrivals, homes, lost)
        finally:
            close_all(home.directory for home in homes)


# --- names ----------------------------------------------------------------------------------------------------------


def _parent(path: str) -> tuple[OwnedFd, str]:
    """Return the directory of a path (O_PATH), and the name in it; no symbolic link is followed on the way.

    OSError: ENOENT, and ENOTDIR for a symbolic link, too. FdtError: it is no path of a file.
    """
    _, *parts, name = path.split("/")
    if not path.startswith("/") or name in ("", ".", "..") or ".." in parts:
        raise FdtError(f"{path!r} is no path of a file")
    way = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = OwnedFd(os.open("/", way))
    for part in parts:
        with directory as above:
            directory = OwnedFd(os.open(part, way, dir_fd=above.fileno()))
    return directory, name


def _find(path: str, status: os.stat_result) -> OwnedFd | None:
    """Return the file at a path (O_PATH) if it is that one; else it is of another mount namespace, unlinked, or renamed."""
    try:
        named = paths.find(path)
    except KernelError:
        return None
    if not os.path.samestat(os.fstat(named.fileno()), status):
        named.close()
        return None
    return named


# --- leaving ---------------------------------------------------------------------------------------------------------


def _paths(group: Group) -> list[str]:
    """Return the names of a file that its open files were opened by, and that lead to it from here."""
    links = {file.look.link: file for _, file in group.files}
    found = []
    for path, file in sorted(links.items()):
        if (named := _find(path, file.look.status)) is not None:
            named.close()
            found.append(path)
    return found


def _write_links(node: Node, names: Sequence[str]) -> None:
    for index, path in enumerate(names):
        node.add(f"link@{index}").set_path("path", path)


def _unknown_names(count: int) -> tuple[str, ...]:
    if count <= 0:
        return ()
    return (
        f"{count} of its names: fdbox knows only those that lead to an entry of the box from here",
    )


# --- arriving --------------------------------------------------------------------------------------------------------


def _home(path: str, uid: int, owner: int) -> Home:
    """Return where a file may have its name again; KernelError or OSError if it may not."""
    if owner not in (0, uid):
        raise KernelError("the owner of the box does not own it")
    directory, name = _parent(path)
    try:
        _check(directory.fileno(), owner)
    except BaseException:
        directory.close()
        raise
    return Home(path, directory, name)


def _check(directory: int, owner: int) -> None:
    if not memfd.is_shmem(directory):
        raise KernelError("its directory is of no tmpfs")
    status = os.fstat(directory)
    if owner not in (0, status.st_uid) and not status.st_mode & stat.S_IWOTH:
        raise KernelError("the owner of the box may make no files in its directory")


def _make(node: Node, arrivals: Arrivals, homes: list[Home], lost: list[str]) -> Made:
    if homes:
        try:
            made = _named(node, arrivals, homes)
        except (OSError, KernelError) as error:
            lost += [_lost_name(home.path, error) for home in homes]
        else:
            return Made(made.fd, (*lost, *made.lost))
    unnamed = memfd.create("", allow_sealing=False)
    return Made(_memory.fill(node, arrivals, unnamed), tuple(lost))


def _named(node: Node, arrivals: Arrivals, homes: Sequence[Home]) -> Made:
    """Return a file that gets its names when it is complete: nobody ever sees half of it."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    unnamed = OwnedFd(os.open(".", flags, 0o600, dir_fd=homes[0].directory.fileno()))
    file = _memory.fill(node, arrivals, unnamed)
    lost = []
    for home in homes:
        try:
            _link(file.fileno(), home)
        except OSError as error:
            lost.append(_lost_name(home.path, error))
    return Made(file, tuple(lost))


def _link(fd: int, home: Home) -> None:
    """Give a file a name, unless there is something of that name."""
    os.link(
        f"/proc/self/fd/{fd}", home.name, dst_dir_fd=home.directory.fileno(), follow_symlinks=True
    )


def _lost_name(path: str, error: OSError | FdboxError) -> str:
    reason = error.message if isinstance(error, FdboxError) else error.strerror
    return f"its name {paths.shown(path)!r}: {reason}"


KINDS: tuple[Kind, ...] = (Tmpfs(),)
