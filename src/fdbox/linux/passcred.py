"""Sockets that take no descriptors (SO_PASSRIGHTS, Linux 6.16)."""

from __future__ import annotations

import errno
import socket

SO_PASSRIGHTS = 83  # include/uapi/asm-generic/socket.h


def refuse_descriptors(sock: socket.socket) -> bool:
    """Return whether the kernel will now refuse descriptors sent to `sock` (EPERM to the sender).

    False: it is older than 6.16 and has no such option. OSError EOPNOTSUPP: not a Unix socket.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return False
        raise
    return True
