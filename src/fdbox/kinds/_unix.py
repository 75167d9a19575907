"""What the kinds of Unix sockets have in common: names, and what all of them write down.

    type; shutdown; flags; mode; uid; gid; so-... ; filter;
    name@0 {
        address;                               an abstract name, with the NUL that it begins with; or
        path;                                  a path, and what its file was:
        folder; mode; uid; gid;                its directory without symbolic links
        device; inode; birth; type;            none of these, if its file was removed
    };

A file of that name that is still there was left by this very socket, or is somebody else's: only the former is removed.
A box is no way to make files where its owner could not, so his rights are taken on for that (setfsuid(2)).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, FdtError, KernelError
from fdbox.kinds import _paths, _sockets
from fdbox.kinds._sockets import Form, Option
from fdbox.kinds.base import numbered
from fdbox.linux import fsuid, paths, sock, sockdiag
from fdbox.linux.fd import OwnedFd, open_path
from fdbox.model import Carriage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.fdt.tree import Node
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.sockdiag import UnixSocket

_LONGEST_NAME = 108  # sun_path, include/uapi/linux/un.h
_HOWS = {1: socket.SHUT_RD, 2: socket.SHUT_WR, 3: socket.SHUT_RDWR}
_UNTIL_COMPLETE = 0o600
#: nobody but root can set it
_MARK = "trusted.fdbox"
_RELATIVE = "it is bound to the relative path {path!r}", "bind it to an absolute path"
_FOLDER = "make it before fdbox starts (tmpfiles.d, RuntimeDirectory= of its service)"

#: They are set when the queues are full: SO_PASSCRED would bind the sender to a name, SO_PASSRIGHTS refuse descriptors.
OPTIONS: tuple[Option, ...] = (
    *_sockets.EVERY,
    Option("so-passcred", socket.SOL_SOCKET, 16),
    Option("so-passsec", socket.SOL_SOCKET, 34),
    Option("so-passpidfd", socket.SOL_SOCKET, 76),
    Option("so-passrights", socket.SOL_SOCKET, 83),
    Option("so-inq", socket.SOL_SOCKET, 84),
    Option("so-peek-off", socket.SOL_SOCKET, sock.SO_PEEK_OFF, Form.INT),
)


def state(file: OpenFile) -> UnixSocket:
    """Return what the kernel tells of a socket; KernelError."""
    return sockdiag.unix_socket(file.look.status.st_ino)


def obstacle(seen: Look) -> Carriage | None:
    """Return why a socket cannot be carried, if that is known at once."""
    with sock.borrow(seen.fd) as lent:
        path = lent.getsockname()
        foreign = _sockets.foreign(lent)
    if foreign is None and isinstance(path, str) and path and not path.startswith("/"):
        return Carriage(None, _RELATIVE[0].format(path=printable(path)), _RELATIVE[1])
    return foreign


def label(seen: Look) -> str:
    """Return a socket's name as people write it, or what /proc calls it."""
    with sock.borrow(seen.fd) as lent:
        return printable(lent.getsockname()) or seen.link


def printable(address: str | bytes) -> str:
    """Return a name for people: `@` for the NUL of an abstract one."""
    raw = os.fsencode(address)
    text = (b"@" + raw[1:] if raw[:1] == b"\0" else raw).decode(errors="replace")
    return text.replace("\0", "@")


# --- leaving ---------------------------------------------------------------------------------------------------------


def write(file: OpenFile, lent: socket.socket, told: UnixSocket, node: Node) -> None:
    """Write down what all Unix sockets have."""
    node.set_u32("type", told.type)
    node.set_u32("shutdown", told.shutdown)
    _sockets.write(file, lent, node, OPTIONS)


def write_name(file: OpenFile, lent: socket.socket, node: Node) -> tuple[str, ...]:
    """Write down a socket's name, if it has one; return what is lost of it. CannotCarry."""
    address = lent.getsockname()
    if not address:
        return ()
    child = node.add("name@0")
    if isinstance(address, bytes):
        child.set_data("address", address)
        return ()
    if not address.startswith("/"):
        raise file.refuse(_RELATIVE[0].format(path=printable(address)), _RELATIVE[1])
    found = _socket_file(file, lent, address)
    if found is None:
        child.set_path("path", address)
        return (f"its name {printable(address)!r}, of which the file was removed",)
    with found:
        _write_file(child, address, found.fileno())
    return ()


def _write_file(child: Node, path: str, fd: int) -> None:
    _paths.write_identity(child, path, paths.identity(fd))
    child.set_path("folder", os.path.realpath(Path(path).parent))
    status = os.fstat(fd)
    child.set_u32("mode", stat.S_IMODE(status.st_mode))
    child.set_u32("uid", status.st_uid)
    child.set_u32("gid", status.st_gid)


def _socket_file(file: OpenFile, lent: socket.socket, path: str) -> OwnedFd | None:
    """Return the file that a socket is bound to (O_PATH); None if it was removed."""
    found = _at(path)
    if found is not None and is_file_of(lent, found.fileno()):
        return found
    if found is not None:
        found.close()
    if _is_removed(lent, is_there=found is not None):
        return None
    raise file.refuse(
        f"{printable(path)} does not lead to it from here",
        "it was renamed, or is in another mount namespace than fdbox: bind it to a path that fdbox sees",
    )


def _at(path: str) -> OwnedFd | None:
    try:
        return open_path(path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return None


def is_file_of(lent: socket.socket, fd: int) -> bool:
    """Return whether a file (O_PATH) is the one that a Unix socket is bound to."""
    status = os.fstat(fd)
    try:
        own = sock.unix_file(lent)
    except PermissionError:
        inode = os.fstat(lent.fileno()).st_ino
        return sockdiag.unix_socket(inode).file == (status.st_dev, status.st_ino & 0xFFFFFFFF)
    if own is None:
        return False
    with own:
        return os.path.samestat(os.fstat(own.fileno()), status)


def _is_removed(lent: socket.socket, *, is_there: bool) -> bool:
    """Return whether a socket's file has no name; without privilege, whether there is nothing at its path."""
    try:
        own = sock.unix_file(lent)
    except PermissionError:
        return not is_there
    if own is None:
        return True
    with own:
        return os.fstat(own.fileno()).st_nlink == 0


# --- arriving --------------------------------------------------------------------------------------------------------


def create(node: Node) -> OwnedFd:
    """Return a new socket. OSError, FdtError."""
    made = socket.socket(socket.AF_UNIX, type_of(node) | socket.SOCK_CLOEXEC)
    return OwnedFd(made.detach())


def type_of(node: Node) -> int:
    """Return the type of a socket; FdtError if it is none that Unix sockets have."""
    found = node.u32("type")
    if found not in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        raise FdtError(f"{node.name} has a type that no Unix socket has")
    return found


def finish(lent: socket.socket, node: Node) -> tuple[str, ...]:
    """Give a socket everything that stands in the way of sending; return what of it is lost."""
    if (how := node.u32("shutdown")) in _HOWS:
        lent.shutdown(_HOWS[how])
    return (*_sockets.apply(lent, node, OPTIONS), *_sockets.finish(lent, node))


@contextlib.contextmanager
def named(lent: socket.socket, node: Node, owner: int) -> Iterator[None]:
    """Give a socket its name, if it had one, and see that it can be reached by it inside; an error takes it away again.

    Raises:
        KernelError: somebody else has it, or its directory is not there.
    """
    child = next(numbered(node, "name"), None)
    with contextlib.ExitStack() as undo:
        if child is not None:
            _bind(lent, child, owner, undo)
        yield


def _bind(lent: socket.socket, child: Node, owner: int, undo: contextlib.ExitStack) -> None:
    if child.has("address"):
        address = child.data("address")
        if address[:1] != b"\0" or len(address) > _LONGEST_NAME:
            raise FdtError("a socket has an abstract name that none has")
        _bind_to(lent, address)
    elif child.has("inode"):
        _bind_path(lent, child, owner)
        undo.push(lambda kind, *_: None if kind is None else _unbind(lent, child, owner))
    else:  # only what has a name can listen: a file that is removed soon
        folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="fdbox"))
        lent.bind(f"{folder}/removed")


def _taken(name: str | bytes) -> KernelError:
    return KernelError(
        f"somebody else has its name {printable(name)!r}",
        remedy="end the program that has it, or remove the file; then put a new socket into the box",
    )


def _bind_to(lent: socket.socket, address: str | bytes) -> None:
    try:
        lent.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _taken(address) from error
        raise KernelError(
            f"cannot bind it to {printable(address)!r} again: {error.strerror or error}",
            errno=error.errno or 0,
        ) from error


def _bind_path(lent: socket.socket, child: Node, owner: int) -> None:
    path, folder = child.path("path"), child.path("folder")
    name = Path(path).name
    if not path.startswith("/") or name in ("", ".", "..") or path.endswith("/"):
        raise FdtError(f"{path!r} is no path of a socket")
    if owner not in (0, child.u32("uid")):
        raise KernelError(
            f"the owner of the box does not own the file {printable(path)!r}",
            remedy="have the socket's owner put it into a box of his own",
        )
    with _folder(path, folder) as directory:
        # The file gets the mode of the socket itself (net/unix/af_unix.c): nobody connects before it is complete.
        os.fchmod(lent.fileno(), _UNTIL_COMPLETE)
        with fsuid.acting_as(owner):
            _remove_left(directory.fileno(), name, child)
            _bind_to(lent, path)
        with _fresh(lent, directory.fileno(), name) as fresh:
            with contextlib.suppress(OSError):  # it needs CAP_SYS_ADMIN, and a file system that can
                os.setxattr(_path_of(fresh), _MARK, _mark(child))
            _sockets.own(_path_of(fresh), child)


def _folder(path: str, folder: str) -> OwnedFd:
    """Return the directory that a path leads to, which must be the one that it led to."""
    try:
        directory = paths.find(folder, os.O_DIRECTORY)
    except KernelError as error:
        raise KernelError(
            f"the directory of its name {printable(path)!r} is not there: {error.message}",
            errno=error.errno,
            remedy=_FOLDER,
        ) from error
    try:
        same = os.path.samestat(Path(path).parent.stat(), os.fstat(directory.fileno()))
    except OSError:
        same = False
    if not same:
        directory.close()
        raise KernelError(f"{printable(path)} leads to another directory than it did")
    return directory


def _remove_left(directory: int, name: str, child: Node) -> None:
    """Remove the file that the socket has left behind, if it is still there."""
    try:
        found = OwnedFd(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory))
    except FileNotFoundError:
        return
    with found:
        if not (_is_the_one(found, child) or _is_marked(found, child)):
            raise _taken(child.path("path"))
    os.unlink(name, dir_fd=directory)


def _is_the_one(found: OwnedFd, child: Node) -> bool:
    """Return whether a file is provably the one that was saved: inodes are used again, and only the birth tells."""
    known, saved = paths.identity(found.fileno()), _paths.read_identity(child)
    if not (stat.S_ISSOCK(known.type) and known.born and saved.born):
        return False
    return saved.is_same(known)


def _is_marked(found: OwnedFd, child: Node) -> bool:
    """Return whether a file was made for this very socket, by a process of fdbox that has died while it arrived."""
    try:
        return os.getxattr(_path_of(found), _MARK) == _mark(child)
    except OSError:
        return False


def _mark(child: Node) -> bytes:
    return f"{child.u64('inode')} {child.u64('birth')}".encode()


def _path_of(fd: OwnedFd) -> str:
    return f"/proc/self/fd/{fd.fileno()}"


def _fresh(lent: socket.socket, directory: int, name: str) -> OwnedFd:
    """Return the file that was made by binding (O_PATH)."""
    fresh = OwnedFd(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory))
    if not is_file_of(lent, fresh.fileno()):
        fresh.close()
        raise KernelError(f"{name!r} was replaced while it was made")
    return fresh


def _unbind(lent: socket.socket, child: Node, owner: int) -> None:
    """Remove the file that was made."""
    with contextlib.suppress(OSError, FdboxError):
        name = Path(child.path("path")).name
        with (
            paths.find(child.path("folder"), os.O_DIRECTORY) as directory,
            fsuid.acting_as(owner),
            _fresh(lent, directory.fileno(), name),
        ):
            os.unlink(name, dir_fd=directory.fileno())
