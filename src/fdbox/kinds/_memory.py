"""What the kinds of memory have in common: of one memory, a box can hold several open file descriptions.

    / {
        memory@0 {                   one for each memory
            size; seals; mode; uid; gid;
            token;                   the parcel: the memory itself, or a dense copy of its data
            preserved;               the file whose description the kernel brings back; 0xffffffff: none
            extents = <off len ...>; only of a copy: where its data belongs
            xattr@0 { name; data; }; extended attributes, access control lists among them
        };
        file@0 { memory; flags; position; lost; };    one for each open file description
    };

A memory goes *in place* wherever that is right. It goes as a *dense copy* where the kernel would do harm
(mm/memfd_luo.c): preserving fills every hole, so a mostly empty file would cost memory that nobody has; and a file with
F_SEAL_EXEC but without the writing seals arrives read-only, because the kernel adds the seal to a file whose mode is
0777 again.
"""

from __future__ import annotations

import abc
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, FdtError, KernelError
from fdbox.fdt.tree import Node
from fdbox.kinds import _dense
from fdbox.kinds._inodes import by_inode, numbers_of
from fdbox.kinds.base import Carried, attempt, late_write, numbered
from fdbox.kinds.freight import Made
from fdbox.linux import fdinfo, memfd
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.linux.memfd import Seals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fdbox.kinds._inodes import SameInode
    from fdbox.kinds.freight import Arrivals, Freight, Loaded
    from fdbox.kinds.look import Look, OpenFile

_WRITING = Seals.WRITE | Seals.GROW | Seals.SHRINK | Seals.FUTURE_WRITE
_ALL_SEALS = _WRITING | Seals.SEAL | Seals.EXEC
_EXECUTABLE = 0o111
#: what F_SETFL and open(2) can give back
_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_NOATIME
#: extended attributes; those of `security` are the policy's of the kernel that runs
_KEPT_XATTRS = ("user.", "trusted.", "system.posix_acl_")
_WORTH_PACKING = 1 << 20
_NONE = 0xFFFFFFFF


@dataclass(slots=True)
class Group:
    """The open file descriptions of one memory; `first` is the one that is preserved."""

    files: SameInode

    @property
    def first(self) -> OpenFile:
        """One that can write, if there is: the kernel gives that one back as it was."""
        writable = (file for _, file in self.files if _access(file.look.flags) == os.O_RDWR)
        return next(writable, self.files[0][1])


def _access(flags: int) -> int:
    return flags & os.O_ACCMODE


class Memories(Carried):
    """A kind of memory."""

    @abc.abstractmethod
    def send(self, group: Group, node: Node, freight: Freight) -> tuple[str, ...]:
        """Send a memory (`send_in_place`, or `_dense.send`), and write down what else `make` needs.

        Returns what is already known to be lost of it.
        """

    @abc.abstractmethod
    def make(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return a memory made again, with its bytes and attributes."""

    def unchanged(self, group: Group, saved: Node, freight: Freight) -> bool:
        """Return whether the attributes are as they were saved, and the bytes of what travels as a copy."""
        fresh = Node(saved.name)
        write_attributes(group.first, fresh)
        return (
            fresh.properties.items() <= saved.properties.items()
            and fresh.children == list(numbered(saved, "xattr"))
            and (not saved.has("extents") or self.same_bytes(group.first, saved, freight))
        )

    def open(self, file: Node, saved: Node, memory: OwnedFd, flags: int) -> OwnedFd:
        """Return a memory opened anew, for the node `file` of the memory's node `saved`."""
        return memfd.reopen(memory.fileno(), flags)

    def same_bytes(self, file: OpenFile, saved: Node, freight: Freight) -> bool:
        """Return whether the bytes are those of the copy."""
        return _dense.same(file, saved, freight)

    def save(self, files: Sequence[OpenFile], freight: Freight) -> Node:
        """Return the component; errors as in `CarriedKind.save`."""
        root = Node("")
        same = by_inode(files)
        groups = [Group(one) for one in same]
        lost: dict[OpenFile, tuple[str, ...]] = {}
        for index, group in enumerate(groups):
            node = root.add(f"memory@{index}")
            lost[group.files[0][1]] = self._send(group, node, freight)
            node.set_u32("preserved", _NONE if is_copy(node) else files.index(group.first))
        for at, (file, number) in enumerate(zip(files, numbers_of(same), strict=True)):
            node = root.add(f"file@{at}")
            _write_file(node, file, number)
            if sentences := (*lost.get(file, ()), *_lost_locks(file)):
                node.set_texts("lost", list(sentences))
        return root

    def verify(self, files: Sequence[OpenFile], component: Node, freight: Freight) -> None:
        """Compare every memory and every open file description; see `CarriedKind`."""
        for index, group in enumerate(map(Group, by_inode(files))):
            memory = component.child(f"memory@{index}")
            if not self.unchanged(group, memory, freight):
                raise late_write(group.first)
            for at, file in group.files:
                if not _same_file(
                    file, component.child(f"file@{at}"), memory.u32("preserved") == at
                ):
                    raise late_write(file)

    def load(self, component: Node, arrivals: Arrivals) -> Iterator[Loaded]:
        """Yield every open file description of the component, or what is in its way."""
        memories: dict[int, Loaded] = {}
        try:
            for index, node in enumerate(numbered(component, "file")):
                number = node.u32("memory")
                first = number not in memories
                if first:
                    memories[number] = self._arrive(component, number, arrivals)
                memory = memories[number]
                if isinstance(memory, FdboxError):
                    yield memory
                    continue
                lost = memory.lost if first else ()
                preserved = component.child(f"memory@{number}").u32("preserved") == index
                yield self._open(component, node, memory.fd, lost, preserved=preserved)
        finally:
            close_all(memory.fd for memory in memories.values() if isinstance(memory, Made))

    def _send(self, group: Group, node: Node, freight: Freight) -> tuple[str, ...]:
        try:
            if unknown := memfd.get_seals(group.first.fd) & ~_ALL_SEALS:
                raise group.first.refuse(
                    f"it has a seal that this fdbox does not know: {int(unknown):#x}"
                )
            lost = self.send(group, node, freight)
            write_attributes(group.first, node)
        except KernelError as error:
            raise group.first.refuse(
                f"it cannot be saved: {error.message}", error.remedy
            ) from error
        except OSError as error:
            raise group.first.refuse(f"it cannot be saved: {error.strerror}") from error
        return lost

    def _arrive(self, component: Node, number: int, arrivals: Arrivals) -> Loaded:
        return attempt(lambda: self.make(component.child(f"memory@{number}"), arrivals), self.name)

    def _open(
        self,
        component: Node,
        node: Node,
        memory: OwnedFd,
        lost: tuple[str, ...],
        *,
        preserved: bool,
    ) -> Loaded:
        """Return one open file description of a memory.

        The one that the kernel preserved has its position already, sampled later than ours was; it cannot be other
        than O_RDWR. All others are opened anew.
        """

        def make() -> Made:
            flags, position = node.u32("flags") & _KEPT_FLAGS, node.u64("position")
            told = (*(node.texts("lost") if node.has("lost") else ()), *lost)
            if preserved and _access(flags) == os.O_RDWR:
                fcntl.fcntl(memory.fileno(), fcntl.F_SETFL, flags)
                return Made(memory.dup(), told)
            saved = component.child(f"memory@{node.u32('memory')}")
            fresh = self.open(node, saved, memory, flags)
            try:
                os.lseek(fresh.fileno(), position, os.SEEK_SET)
            except BaseException:
                fresh.close()
                raise
            return Made(fresh, told)

        return attempt(make, self.name)


def is_regular(seen: Look) -> bool:
    """Return whether it is a regular file of tmpfs or hugetlbfs, opened; this never blocks."""
    return stat.S_ISREG(seen.status.st_mode) and not seen.is_path and memfd.accepts_seals(seen.fd)


# --- leaving ---------------------------------------------------------------------------------------------------------


def send_in_place(file: OpenFile, node: Node, freight: Freight) -> bool:
    """Send the memory itself if it is of the kernel's ordinary pages, and that does no harm; return whether."""
    if not freight.in_place:
        return False
    status, seals = os.fstat(file.fd), memfd.get_seals(file.fd)
    held = status.st_blocks * 512
    holes = max(0, status.st_size - held)
    if _gets_seals(seals, status.st_mode) or (holes > held and holes >= _WORTH_PACKING):
        return False
    if freight.streams and holes + _dense.NOTES > freight.free:
        return False
    _dense.take_room(file, holes + _dense.NOTES, freight)
    node.set_u64("token", freight.lend(file.fd, file.entry))
    return True


def _gets_seals(seals: Seals, mode: int) -> bool:
    """Return whether the kernel would add seals that the memory does not have."""
    if Seals.EXEC not in seals:
        return False
    return seals & _WRITING != _WRITING or mode & _EXECUTABLE != _EXECUTABLE


def write_attributes(file: OpenFile, node: Node) -> None:
    """Write down size, seals, mode, owner and extended attributes."""
    status = os.fstat(file.fd)
    node.set_u64("size", status.st_size)
    node.set_u32("seals", int(memfd.get_seals(file.fd)))
    node.set_u32("mode", stat.S_IMODE(status.st_mode))
    node.set_u32("uid", status.st_uid)
    node.set_u32("gid", status.st_gid)
    names = [name for name in _xattrs(file.fd) if name.startswith(_KEPT_XATTRS)]
    for index, name in enumerate(sorted(names)):
        child = node.add(f"xattr@{index}")
        child.set_path("name", name)  # it need not be text
        child.set_data("data", os.getxattr(file.fd, name))


def _xattrs(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # hugetlbfs, or a kernel without CONFIG_TMPFS_XATTR
            raise
        return []


def _write_file(node: Node, file: OpenFile, memory: int) -> None:
    node.set_u32("memory", memory)
    node.set_u32("flags", fcntl.fcntl(file.fd, fcntl.F_GETFL) & _KEPT_FLAGS)
    node.set_u64("position", os.lseek(file.fd, 0, os.SEEK_CUR))


def _same_file(file: OpenFile, saved: Node, preserved: bool) -> bool:  # noqa: FBT001
    """Return whether flags and position are as they were saved; that of a preserved one is sampled at the jump."""
    fresh = Node(saved.name)
    _write_file(fresh, file, saved.u32("memory"))
    if preserved and _access(saved.u32("flags")) == os.O_RDWR:
        fresh.properties["position"] = saved.properties["position"]
    return fresh.properties.items() <= saved.properties.items()


def _lost_locks(file: OpenFile) -> Iterator[str]:
    """Yield what is lost with this open file description's locks (the lines `lock:` of proc_pid_fdinfo(5))."""
    locks = fdinfo.read(file.fd).extra.get("lock", "")
    if locks:
        yield f"its file locks ({len(locks.splitlines())}): take them again"


# --- arriving --------------------------------------------------------------------------------------------------------


def is_copy(node: Node) -> bool:
    """Return whether a dense copy came, rather than the memory itself."""
    return node.has("extents")


def take_in_place(node: Node, arrivals: Arrivals) -> OwnedFd:
    """Return the memory that came itself, with its attributes."""
    memory = arrivals.take(node.u64("token"))
    try:
        _dense.expect_memory(node, memory.fileno())
        restore(node, memory.fileno())
    except BaseException:
        memory.close()
        raise
    return memory


def fill(
    node: Node, arrivals: Arrivals, memory: OwnedFd, write: _dense.Write | None = None
) -> OwnedFd:
    """Return a new memory with its bytes and attributes; it is closed if that fails."""
    try:
        _dense.receive(node, arrivals, memory.fileno(), write)
        restore(node, memory.fileno())
    except BaseException:
        memory.close()
        raise
    return memory


def restore(node: Node, fd: int) -> None:
    """Give a memory the attributes that `write_attributes` wrote down.

    The owner comes before the mode, which loses its set-id bits by it; the mode before the lists, which change it; and
    all before the seals: F_SEAL_EXEC fixes the mode, and on an executable file would add the writing seals.
    """
    status = os.fstat(fd)
    if status.st_size != node.u64("size"):
        raise FdtError("the memory that came has another size than the one that left")
    owner = node.u32("uid"), node.u32("gid")
    if (status.st_uid, status.st_gid) != owner:
        _give_to(owner, fd)
    os.fchmod(fd, node.u32("mode") & 0o7777)
    for child in numbered(node, "xattr"):
        _set_xattr(child, fd)
    _seal(node, fd)


def _give_to(owner: tuple[int, int], fd: int) -> None:
    try:
        os.fchown(fd, *owner)
    except PermissionError as error:
        raise KernelError(
            f"cannot give the memory to user {owner[0]} and group {owner[1]}: {error.strerror}",
            errno=error.errno or 0,
            remedy="run fdbox as root, or with CAP_CHOWN",
        ) from error


def _set_xattr(node: Node, fd: int) -> None:
    name = node.path("name")
    if not name.startswith(_KEPT_XATTRS):
        raise FdtError(f"{node.name} is {name!r}, which fdbox does not set")
    os.setxattr(fd, name, node.data("data"))


def _seal(node: Node, fd: int) -> None:
    seals = Seals(node.u32("seals"))
    if seals & ~_ALL_SEALS:
        raise FdtError(f"{node.name} has seals that no memory has")
    if missing := seals & ~memfd.get_seals(fd):
        memfd.add_seals(fd, missing)
    if memfd.get_seals(fd) != seals:
        raise KernelError("the kernel brought the memory back with other seals")
