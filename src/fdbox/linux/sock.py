"""A socket behind a borrowed descriptor (socket(7))."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from fdbox.linux.fd import OwnedFd, close_all, queued
from fdbox.linux.syscalls import last_error, libc

if TYPE_CHECKING:
    from collections.abc import Iterator

# include/uapi/asm-generic/socket.h
SO_PEEK_OFF = 42
_SO_ATTACH_FILTER = 26
_SO_MEMINFO = 55
_SO_COOKIE = 57
_SO_NETNS_COOKIE = 71  # Linux 5.14
_SCM_PIDFD = 4
_TRIES = 8
_INT = struct.Struct("=i")
_IOVEC = struct.Struct("@PN")  # struct iovec { void *base; size_t len; }
# struct msghdr { void *name; socklen_t namelen; struct iovec *iov; size_t iovlen; void *control; size_t controllen; int flags; }
_MSGHDR = struct.Struct("@PIPNPNi0P")
_SIOCUNIXFILE = 0x89E0  # include/uapi/linux/un.h
FILTER_SIZE = 8  # struct sock_filter { __u16 code; __u8 jt, jf; __u32 k; }
#: room for SCM_MAX_FD descriptors, and the sender's credentials, process and security label
_CONTROL: int = socket.CMSG_SPACE(253 * 4) + 8192
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_TRUNC | socket.MSG_CMSG_CLOEXEC

libc.recvmsg.restype = ctypes.c_ssize_t


class Family(NamedTuple):
    """What never changes about a socket: AF_*, SOCK_* and IPPROTO_* (or the protocol of its own family)."""

    domain: int
    type: int
    protocol: int


@contextlib.contextmanager
def borrow(fd: int) -> Iterator[socket.socket]:
    """Lend a borrowed descriptor as a socket object, which does not close it; OSError ENOTSOCK."""
    lent = socket.socket(fileno=fd)
    try:
        yield lent
    finally:
        lent.detach()


def family(fd: int) -> Family:
    """Return what a borrowed descriptor's socket is; OSError ENOTSOCK, EBADF."""
    with borrow(fd) as lent:
        return Family(int(lent.family), int(lent.type), lent.proto)


def network_cookie(lent: socket.socket) -> int:
    """Return the number of the network namespace that a socket is in; OSError ENOPROTOOPT before Linux 5.14."""
    raw = lent.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, sys.byteorder)


def is_in_our_network(lent: socket.socket) -> bool:
    """Return whether a socket is in the network namespace of this process; errors as `network_cookie`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        return network_cookie(ours) == network_cookie(lent)


def cookie(lent: socket.socket) -> int:
    """Return a number that no other socket of this boot has (SO_COOKIE); OSError."""
    return int.from_bytes(lent.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)


def is_connected(fd: int) -> bool:
    """Return whether a borrowed descriptor's socket has, or had, another end (getpeername(2)); OSError ENOTSOCK."""
    with borrow(fd) as lent:
        try:
            lent.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            return False
    return True


def unix_file(lent: socket.socket) -> OwnedFd | None:
    """Return the file that a Unix socket is bound to (O_PATH), also where no path leads to it; None if it has none.

    OSError: EPERM without CAP_NET_ADMIN.
    """
    try:
        return OwnedFd(fcntl.ioctl(lent.fileno(), _SIOCUNIXFILE, 0))
    except FileNotFoundError:
        return None


# --- classic BPF filters ---------------------------------------------------------------------------------------------


def filter_of(lent: socket.socket) -> bytes:
    """Return the filter of a socket (SO_GET_FILTER), an array of struct sock_filter; b"" if it has none.

    OSError: EACCES if it is an eBPF program, which cannot be read.
    """
    # The length is counted in instructions, which Python's getsockopt would take for bytes.
    count = ctypes.c_uint32(0)
    _get_filter(lent, None, count)
    if not count.value:
        return b""
    code = ctypes.create_string_buffer(count.value * FILTER_SIZE)
    _get_filter(lent, code, count)
    return code.raw[: count.value * FILTER_SIZE]


def _get_filter(lent: socket.socket, into: object, count: ctypes.c_uint32) -> None:
    option = _SO_ATTACH_FILTER  # SO_GET_FILTER is the same number
    if libc.getsockopt(lent.fileno(), socket.SOL_SOCKET, option, into, ctypes.byref(count)) != 0:
        raise last_error()


def attach_filter(lent: socket.socket, code: bytes) -> None:
    """Give a socket a filter, as `filter_of` returns it; OSError EINVAL, EPERM (it is locked), ENOMEM."""
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; }
    program = struct.pack("@HP", len(code) // FILTER_SIZE, ctypes.addressof(buffer))
    lent.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


# --- what is queued --------------------------------------------------------------------------------------------------


def readable(lent: socket.socket) -> int:
    """Return how many bytes are queued in a stream or seqpacket socket, in a datagram socket's first message (FIONREAD).

    OSError: EINVAL for a listener.
    """
    return queued(lent.fileno())


def receive_memory(lent: socket.socket) -> int:
    """Return the memory that what was not read takes (SO_MEMINFO, SK_MEMINFO_RMEM_ALLOC); OSError."""
    return int(_INT.unpack(lent.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _INT.size))[0])


class Peeked(NamedTuple):
    """The size of a message, or a run of bytes, and the descriptors that come with it."""

    size: int
    fds: list[OwnedFd]


def set_peek_offset(lent: socket.socket, offset: int) -> None:
    """Set where in its queue a Unix socket is peeked at (SO_PEEK_OFF), in bytes; -1: at its beginning, each time.

    Somebody who reads just then sets it back to what it was, less what he has read (sk_peek_offset_bwd in net/core/sock.c has
    no lock), so it is looked at and set again.

    OSError.
    """
    for _ in range(_TRIES):
        lent.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)
        if lent.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == offset:
            break


def peek(lent: socket.socket, buffer: bytearray) -> Peeked:
    """Put what is at the offset of peeking in the queue of a Unix socket into `buffer`, and take nothing; return what it is.

    A message larger than the buffer has its real size, and only its beginning is in the buffer. A stream gives what there
    is until the end of what descriptors came with. An offset (`set_peek_offset`) moves on by what was peeked at.

    The kernel skips an empty message that was peeked at before, by anybody.

    Raises:
        OSError: BlockingIOError if there is no more; EMFILE if not all descriptors could be duplicated.
    """
    size, control, flags, _ = lent.recvmsg_into([buffer], _CONTROL, _PEEK)
    fds = [OwnedFd(number) for number in _numbers(control)]
    if flags & socket.MSG_CTRUNC:
        close_all(fds)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return Peeked(size, fds)


def before_last(lent: socket.socket, size: int) -> int:
    """Return how many of the `size` bytes at the offset of peeking in a stream were sent before the buffer that the last one is in.

    A reader gets descriptors with the first byte of the buffer they were sent with, but peeking shows them earlier
    (net/unix/af_unix.c: unix_stream_read_generic goes on to the next buffer although nothing more is wanted). What it does
    not do is to copy a part of a buffer for which there is no memory: the last byte is to go where there is none.

    OSError: BlockingIOError if there is nothing.
    """
    room = ctypes.create_string_buffer(size)
    vectors = ctypes.create_string_buffer(
        _IOVEC.pack(ctypes.addressof(room), size - 1) + _IOVEC.pack(0, 1)
    )
    header = ctypes.create_string_buffer(_MSGHDR.pack(0, 0, ctypes.addressof(vectors), 2, 0, 0, 0))
    copied = int(libc.recvmsg(lent.fileno(), header, int(_PEEK)))
    if copied >= 0:
        return copied
    error = last_error()
    if error.errno == errno.EFAULT:  # it is all one buffer
        return 0
    raise error


def _numbers(control: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors in control data; that of the sending process (SO_PASSPIDFD) is closed."""
    found = array.array("i")
    for level, kind, content in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
        elif level == socket.SOL_SOCKET and kind == _SCM_PIDFD:
            OwnedFd(int.from_bytes(content[:4], sys.byteorder)).close()
    return found.tolist()


def has_urgent(lent: socket.socket) -> bool:
    """Return whether an out-of-band byte waits in a Unix stream socket (MSG_OOB)."""
    try:
        lent.recv(1, socket.MSG_OOB | socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:  # EINVAL: there is none; EOPNOTSUPP: the kernel was built without it
        return False
    return True
