"""Network interfaces whose other end is a descriptor (Documentation/networking/tuntap.rst)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import NamedTuple

from fdbox.errors import KernelError

DEVICE = os.makedev(10, 200)  # TUN_MINOR of the misc devices
PATH = "/dev/net/tun"
# include/uapi/linux/if_tun.h
_SETIFF, _SETPERSIST, _SETOWNER, _SETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
_GETIFF, _GETSNDBUF, _SETSNDBUF = 0x800454D2, 0x800454D3, 0x400454D4
_GETVNETHDRSZ, _SETVNETHDRSZ = 0x800454D7, 0x400454D8
PERSIST = 0x0800
#: IFF_TUN, IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR: what TUNSETIFF takes
FLAGS = 0x0001 | 0x0002 | 0x0100 | 0x1000 | 0x4000
_IFREQ = struct.Struct("=16sh22x")  # struct ifreq { char ifr_name[16]; short ifr_flags; ... }
_INT = struct.Struct("=i")
NOBODY = 0xFFFFFFFF


class Interface(NamedTuple):
    """An interface: its name, IFF_* flags, bytes of the send buffer and of the header of each packet, user and group."""

    name: str
    flags: int
    sndbuf: int
    header: int
    uid: int
    gid: int


def inspect(fd: int) -> Interface | None:
    """Return the interface of a borrowed descriptor; None if it has none.

    KernelError: it is in another network namespace, or its name is no UTF-8. OSError ENOTTY.
    """
    try:
        raw = fcntl.ioctl(fd, _GETIFF, bytes(_IFREQ.size))
    except OSError as error:
        if error.errno == errno.EBADFD:
            return None
        raise
    name, flags = _IFREQ.unpack(raw)
    try:
        text = name.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise KernelError(
            f"the name of its interface is no UTF-8: {error.object!r}",
            remedy="rename the interface",
        ) from error
    folder = Path("/sys/class/net") / text
    if not (folder / "tun_flags").exists():
        raise KernelError(
            f"its interface {text!r} is not seen from here",
            remedy="run fdbox in the network namespace of the interface, and mount /sys",
        )
    owner, group = (int((folder / which).read_text()) & NOBODY for which in ("owner", "group"))
    return Interface(
        text, flags & 0xFFFF, _get(fd, _GETSNDBUF), _get(fd, _GETVNETHDRSZ), owner, group
    )


def _get(fd: int, request: int) -> int:
    return int(_INT.unpack(fcntl.ioctl(fd, request, bytes(_INT.size)))[0])


def attach(fd: int, wanted: Interface) -> None:
    """Give an open /dev/net/tun an interface; what is not there is made. KernelError EPERM, EBUSY, EINVAL."""
    request = _IFREQ.pack(wanted.name.encode(), wanted.flags & FLAGS)
    try:
        fcntl.ioctl(fd, _SETIFF, request)
        fcntl.ioctl(fd, _SETSNDBUF, _INT.pack(wanted.sndbuf))
        fcntl.ioctl(fd, _SETVNETHDRSZ, _INT.pack(wanted.header))
        for number, which in ((wanted.uid, _SETOWNER), (wanted.gid, _SETGROUP)):
            if number != NOBODY:
                fcntl.ioctl(fd, which, number)
        if wanted.flags & PERSIST:
            fcntl.ioctl(fd, _SETPERSIST, 1)
    except OSError as error:
        raise KernelError(
            f"cannot make the interface {wanted.name!r} again: {error.strerror}",
            errno=error.errno or 0,
            remedy={
                errno.EPERM: "it needs CAP_NET_ADMIN",
                errno.EBUSY: "somebody else has it: start fdbox before them",
            }.get(error.errno or 0),
        ) from error
