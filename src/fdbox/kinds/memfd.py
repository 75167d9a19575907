"""memfd: anonymous memory, which the kernel carries with its pages where they are.

    / {                              one component for all memfds of a box, "fdbox,memfd-v1"
        memory@0 {                   one for each memory
            name; size; seals; mode; uid; gid;
            token;                   the parcel: the memfd itself, or a dense copy of its data
            preserved;               the file whose description the kernel brings back; 0xffffffff: none
            extents = <off len ...>; only of a copy: where its data belongs
        };
        file@0 { memory; flags; position; };    one for each open file description
    };

A memory goes *in place* wherever that is right. It goes as a *dense copy* where the kernel would do harm
(mm/memfd_luo.c): preserving fills every hole, so a mostly empty file would cost memory that nobody has; and a file with
F_SEAL_EXEC but without the writing seals arrives read-only, because the kernel adds the seal to a file whose mode is
0777 again.
"""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fdbox.errors import CannotCarry, FdboxError, FdtError, KernelError, NoRoom
from fdbox.fdt.tree import Node
from fdbox.linux import memfd
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.linux.memfd import Seals
from fdbox.model import Carriage, Description

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fdbox.kinds.base import Freight, Loaded, Look, OpenFile, Take

_WRITING = Seals.WRITE | Seals.GROW | Seals.SHRINK | Seals.FUTURE_WRITE
_ALL_SEALS = _WRITING | Seals.SEAL | Seals.EXEC
_EXECUTABLE = 0o111
#: what F_SETFL and open(2) can give back
_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_NOATIME
_WORTH_PACKING = 1 << 20
#: for the kernel's own notes of one preserved file (kernel.md: 13 KiB)
_NOTES = 16 << 10
_CHUNK = 1 << 20
_MAX_SIZE = (1 << 63) - 1
_NONE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Memory:
    """What a memory is, apart from its bytes; `extents` (offset, length) where they travel as a dense copy."""

    name: str
    size: int
    seals: Seals
    mode: int
    uid: int
    gid: int
    token: int
    extents: tuple[tuple[int, int], ...] | None


@dataclass(slots=True)
class _Group:
    """The open file descriptions of one memory; `first` is the one that is preserved."""

    files: list[tuple[int, OpenFile]] = field(default_factory=list)

    @property
    def first(self) -> OpenFile:
        """One that can write, if there is: the kernel gives that one back as it was."""
        writable = (file for _, file in self.files if _access(file) == os.O_RDWR)
        return next(writable, self.files[0][1])


def _access(file: OpenFile) -> int:
    return file.look.flags & os.O_ACCMODE


class Memfd:
    """Anonymous memory (memfd_create(2)), without hugetlb."""

    name = "memfd"
    compatible = "fdbox,memfd-v1"

    def recognise(self, seen: Look) -> bool:
        """Return whether it is a memfd of ordinary pages."""
        return (
            seen.status.st_dev == memfd.device()
            and stat.S_ISREG(seen.status.st_mode)
            and not seen.flags & os.O_PATH
        )

    def describe(self, seen: Look) -> Description:
        """Return its size, and the name that it was made with."""
        return Description(self.name, seen.status.st_size, memfd.name_in(seen.link))

    def carriage(self, seen: Look, carrier: Carriage) -> Carriage:
        """Return what the machine has: every memfd can go."""
        return carrier

    def depends_on(self, seen: Look) -> Sequence[tuple[int, int]]:
        """Return nothing: memory stands alone."""
        return ()

    def freeze(self, file: OpenFile) -> None:
        """Do nothing: the bytes stay where they are, so late writes arrive; `verify` notices them in a copy."""

    def thaw(self, file: OpenFile) -> None:
        """Do nothing: nothing was stopped."""

    def save(self, files: Sequence[OpenFile], freight: Freight) -> Node:
        """Return the component; errors as in `CarriedKind.save`."""
        root = Node("")
        groups = _by_memory(files)
        for index, group in enumerate(groups):
            node = root.add(f"memory@{index}")
            _write_memory(node, saved := _send(group.first, freight))
            in_place = saved.extents is None
            node.set_u32("preserved", files.index(group.first) if in_place else _NONE)
        numbers = {at: index for index, group in enumerate(groups) for at, _ in group.files}
        for at, file in enumerate(files):
            _write_file(root.add(f"file@{at}"), file, numbers[at])
        return root

    def verify(self, files: Sequence[OpenFile], component: Node, sent: Mapping[int, int]) -> None:
        """Compare attributes, and the bytes of what travels as a copy."""
        for index, group in enumerate(_by_memory(files)):
            saved = _read_memory(component.child(f"memory@{index}"))
            entry = group.first.entries[0]
            if _inspect(group.first, saved.token, saved.extents) != saved or (
                saved.extents is not None
                and not _same_data(group.first.fd, sent[saved.token], saved.extents)
            ):
                raise CannotCarry(
                    f"the memory {entry!r} was changed after it was saved",
                    remedy="its program must stop writing when it hears `prepare`; then seal again",
                    entry=entry,
                    kind=self.name,
                )

    def load(self, component: Node, take: Take) -> Iterator[Loaded]:
        """Yield every open file description of the component, or what is in its way."""
        memories: dict[int, OwnedFd | FdboxError] = {}
        try:
            for index, node in enumerate(_numbered(component, "file")):
                number = node.u32("memory")
                if number not in memories:
                    memories[number] = _arrive(component, number, take)
                memory = memories[number]
                yield (
                    memory
                    if isinstance(memory, FdboxError)
                    else _open(
                        node,
                        memory,
                        preserved=component.child(f"memory@{number}").u32("preserved") == index,
                    )
                )
        finally:
            close_all(memory for memory in memories.values() if isinstance(memory, OwnedFd))


def _by_memory(files: Sequence[OpenFile]) -> list[_Group]:
    groups: dict[tuple[int, int], _Group] = {}
    for index, file in enumerate(files):
        groups.setdefault(file.look.inode, _Group()).files.append((index, file))
    return list(groups.values())


# --- leaving ---------------------------------------------------------------------------------------------------------


def _inspect(file: OpenFile, token: int, extents: tuple[tuple[int, int], ...] | None) -> Memory:
    status = os.fstat(file.fd)
    return Memory(
        name=file.description.label,
        size=status.st_size,
        seals=memfd.get_seals(file.fd),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        token=token,
        extents=extents,
    )


def _send(file: OpenFile, freight: Freight) -> Memory:
    """Put one memory among the parcels, and return what it is."""
    found = _inspect(file, 0, None)
    entry = file.entries[0]
    if unknown := found.seals & ~_ALL_SEALS:
        raise CannotCarry(
            f"the memory {entry!r} has a seal that this fdbox does not know: {int(unknown):#x}",
            entry=entry,
            kind="memfd",
        )
    held = os.fstat(file.fd).st_blocks * 512
    holes = max(0, found.size - held)
    if not _must_copy(found) and not (holes > held and holes >= _WORTH_PACKING):
        _take_room(freight, holes + _NOTES, entry)
        return _inspect(file, freight.lend(file.fd, entry), None)
    extents = tuple(memfd.data_extents(file.fd))
    _take_room(freight, sum(length for _, length in extents) + _NOTES, entry)
    copy = memfd.create("fdbox-copy")
    token = freight.give(copy, entry)
    _copy_out(file.fd, copy.fileno(), extents)
    return _inspect(file, token, extents)


def _must_copy(found: Memory) -> bool:
    """Return whether the kernel would add seals that the memory does not have."""
    if Seals.EXEC not in found.seals:
        return False
    return found.seals & _WRITING != _WRITING or found.mode & _EXECUTABLE != _EXECUTABLE


def _take_room(freight: Freight, wanted: int, entry: str) -> None:
    if wanted > freight.free:
        raise NoRoom(
            f"saving the memory {entry!r} takes {wanted} bytes, and {max(0, freight.free)} are free",
            entry=entry,
        )
    freight.free -= wanted


def _pieces(extents: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield (offset in the sparse file, offset in the dense one, length), in pieces of bounded length."""
    dense = 0
    for start, length in extents:
        for done in range(0, length, _CHUNK):
            piece = min(_CHUNK, length - done)
            yield start + done, dense, piece
            dense += piece


def _copy(source: int, target: int, pieces: Iterator[tuple[int, int, int]]) -> None:
    """Copy (source offset, target offset, length); FdtError if the source has fewer bytes."""
    buffer = memoryview(bytearray(_CHUNK))
    for start, to, length in pieces:
        if os.preadv(source, [buffer[:length]], start) != length:
            raise FdtError("there are fewer bytes than the component says")
        written = 0
        while written < length:
            written += os.pwrite(target, buffer[written:length], to + written)


def _copy_out(sparse: int, dense: int, extents: Sequence[tuple[int, int]]) -> None:
    os.ftruncate(dense, sum(length for _, length in extents))
    with memfd.reopen(sparse, os.O_RDONLY) as source:
        _copy(source.fileno(), dense, _pieces(extents))


def _same_data(sparse: int, dense: int, extents: Sequence[tuple[int, int]]) -> bool:
    if tuple(memfd.data_extents(sparse)) != tuple(extents):
        return False
    with memfd.reopen(sparse, os.O_RDONLY) as source:
        return all(
            os.pread(source.fileno(), length, start) == os.pread(dense, length, at)
            for start, at, length in _pieces(extents)
        )


# --- the component ---------------------------------------------------------------------------------------------------


def _write_memory(node: Node, memory: Memory) -> None:
    node.set_text("name", memory.name)
    node.set_u64("size", memory.size)
    node.set_u32("seals", int(memory.seals))
    node.set_u32("mode", memory.mode)
    node.set_u32("uid", memory.uid)
    node.set_u32("gid", memory.gid)
    node.set_u64("token", memory.token)
    if memory.extents is not None:
        node.set_u64s("extents", [number for extent in memory.extents for number in extent])


def _read_memory(node: Node) -> Memory:
    memory = Memory(
        name=node.text("name"),
        size=node.u64("size"),
        seals=Seals(node.u32("seals")),
        mode=node.u32("mode") & 0o7777,
        uid=node.u32("uid"),
        gid=node.u32("gid"),
        token=node.u64("token"),
        extents=_read_extents(node) if node.has("extents") else None,
    )
    if memory.size > _MAX_SIZE or memory.seals & ~_ALL_SEALS:
        raise FdtError(f"{node.name} has a size or seals that no memory has")
    return memory


def _read_extents(node: Node) -> tuple[tuple[int, int], ...]:
    numbers = node.u64s("extents")
    extents = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    end = 0
    for start, length in extents:
        if start < end or not length or start + length > node.u64("size"):
            raise FdtError(f"{node.name} has extents that no file has")
        end = start + length
    if len(numbers) % 2:
        raise FdtError(f"{node.name} has half an extent")
    return extents


def _write_file(node: Node, file: OpenFile, memory: int) -> None:
    node.set_u32("memory", memory)
    node.set_u32("flags", file.look.flags & _KEPT_FLAGS)
    node.set_u64("position", os.lseek(file.fd, 0, os.SEEK_CUR))


def _numbered(component: Node, name: str) -> Iterator[Node]:
    """Yield the nodes name@0, name@1, ...; FdtError unless they stand in this order without a gap."""
    found = [node for node in component.children if node.name.partition("@")[0] == name]
    for index, node in enumerate(found):
        if node.name != f"{name}@{index}":
            raise FdtError(f"{node.name} stands where {name}@{index} should")
        yield node


# --- arriving --------------------------------------------------------------------------------------------------------


def _arrive(component: Node, number: int, take: Take) -> OwnedFd | FdboxError:
    """Return a memory that is as it was, or why it is not."""
    try:
        saved = _read_memory(component.child(f"memory@{number}"))
        memory = take(saved.token)
    except FdboxError as error:
        return error
    try:
        if saved.extents is not None:
            memory = _unpack(saved, memory)
        _restore(saved, memory.fileno())
    except FdboxError as error:
        memory.close()
        return error
    except OSError as error:
        memory.close()
        return KernelError(f"cannot restore the memory: {error.strerror}", errno=error.errno or 0)
    return memory


def _unpack(saved: Memory, dense: OwnedFd) -> OwnedFd:
    """Return a new memory with the data where it belongs; `dense` is closed."""
    assert saved.extents is not None
    with dense:
        memory = memfd.create(saved.name, saved.size)
        pieces = ((at, start, length) for start, at, length in _pieces(saved.extents))
        try:
            _copy(dense.fileno(), memory.fileno(), pieces)
        except BaseException:
            memory.close()
            raise
    return memory


def _restore(saved: Memory, fd: int) -> None:
    """Give a memory back what the kernel does not keep.

    The mode comes before the seals: F_SEAL_EXEC fixes it, and on an executable file would add the writing seals.
    """
    status = os.fstat(fd)
    if status.st_size != saved.size:
        raise FdtError("the memory that came has another size than the one that left")
    if (status.st_uid, status.st_gid) != (saved.uid, saved.gid):
        os.fchown(fd, saved.uid, saved.gid)
    os.fchmod(fd, saved.mode)
    if missing := saved.seals & ~memfd.get_seals(fd):
        memfd.add_seals(fd, missing)
    if memfd.get_seals(fd) != saved.seals:
        raise KernelError("the kernel brought the memory back with other seals")


def _open(node: Node, memory: OwnedFd, *, preserved: bool) -> Loaded:
    """Return one open file description of a memory.

    The one that the kernel preserved has its position already, sampled later than ours was; it cannot be other than
    O_RDWR. All others are opened anew.
    """
    try:
        flags, position = node.u32("flags") & _KEPT_FLAGS, node.u64("position")
        if preserved and flags & os.O_ACCMODE == os.O_RDWR:
            fcntl.fcntl(memory.fileno(), fcntl.F_SETFL, flags)
            return memory.dup()
        fresh = memfd.reopen(memory.fileno(), flags)
        try:
            os.lseek(fresh.fileno(), position, os.SEEK_SET)
        except BaseException:
            fresh.close()
            raise
    except OverflowError:
        return FdtError(f"{node.name} has a position that no file has")
    except OSError as error:
        return KernelError(
            f"cannot open the memory again: {error.strerror}", errno=error.errno or 0
        )
    except FdboxError as error:
        return error
    return fresh
