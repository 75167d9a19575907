"""Timers behind a descriptor (timerfd_create(2), fs/timerfd.c)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
from typing import NamedTuple

from fdbox.errors import KernelError
from fdbox.linux import fdinfo
from fdbox.linux.fd import OwnedFd
from fdbox.linux.syscalls import last_error, libc

# include/uapi/linux/time.h
REALTIME, MONOTONIC, BOOTTIME, REALTIME_ALARM, BOOTTIME_ALARM = 0, 1, 7, 8, 9
# include/uapi/linux/timerfd.h
ABSTIME = 1
CANCEL_ON_SET = 2
_SET_TICKS = 0x40085400  # TFD_IOC_SET_TICKS = _IOW('T', 0, __u64)
_TICKS = struct.Struct("=Q")
_SECOND = 1_000_000_000
#: KTIME_MAX, in nanoseconds: later than this the kernel makes it
FOREVER = (1 << 63) - 1
_REMEDIES = {
    errno.EPERM: "an alarm clock needs CAP_WAKE_ALARM",
    errno.EINVAL: "the kernel does not have this clock",
    errno.EOPNOTSUPP: "an alarm clock needs a real-time clock that can wake the machine",
    errno.ECANCELED: "the clock was set; set the timer again",
}


class Timer(NamedTuple):
    """One timer: times in nanoseconds, `remaining` 0 where it is disarmed."""

    clock: int
    #: TFD_TIMER_* of the last timerfd_settime(2)
    flags: int
    interval: int
    remaining: int
    #: expirations that were not read
    ticks: int


# struct itimerspec { struct timespec { time_t tv_sec; long tv_nsec; } it_interval, it_value; }
_ITIMERSPEC = struct.Struct("=4q")


def _failed(what: str) -> KernelError:
    error = last_error()
    code = error.errno or 0
    return KernelError(f"{what}: {error.strerror}", errno=code, remedy=_REMEDIES.get(code))


def create(clock: int, flags: int = 0) -> OwnedFd:
    """Return a disarmed timer, close-on-exec; `flags` may have O_NONBLOCK. KernelError: EINVAL, EPERM, EMFILE."""
    fd = int(libc.timerfd_create(clock, flags | os.O_CLOEXEC))
    if fd < 0:
        raise _failed(f"cannot create a timer of clock {clock}")
    return OwnedFd(fd)


def settime(fd: int, value: int, interval: int = 0, flags: int = 0) -> None:
    """Set when it expires first, and then again, in nanoseconds; 0 disarms it. Unread expirations are gone.

    KernelError: EINVAL, EPERM, EOPNOTSUPP, ECANCELED (it is armed all the same).
    """
    spec = _ITIMERSPEC.pack(*divmod(interval, _SECOND), *divmod(value, _SECOND))
    if libc.timerfd_settime(fd, flags, spec, None) != 0:
        raise _failed(f"cannot set the timer to {value} ns")


def inspect(fd: int) -> Timer:
    """Return what a timer is at this moment; nothing of it is changed, and nothing read.

    KernelError: EINVAL if it is no timer.
    """
    spec = ctypes.create_string_buffer(_ITIMERSPEC.size)
    # fdinfo counts a periodic timer's expirations from the first only: timerfd_gettime() brings it up to date.
    if libc.timerfd_gettime(fd, spec) != 0:
        raise _failed(f"descriptor {fd} is no timer")
    times = _ITIMERSPEC.unpack(spec.raw)
    told = fdinfo.read(fd)
    return Timer(
        clock=int(told.line("clockid")),
        flags=int(told.line("settime flags"), 8),
        interval=times[0] * _SECOND + times[1],
        remaining=times[2] * _SECOND + times[3],
        ticks=int(told.line("ticks")),
    )


def set_ticks(fd: int, ticks: int) -> bool:
    """Set the number of expirations that were not read, at least 1; False if the kernel was built without that.

    (TFD_IOC_SET_TICKS needs CONFIG_CHECKPOINT_RESTORE.)
    """
    try:
        fcntl.ioctl(fd, _SET_TICKS, _TICKS.pack(ticks))
    except OSError as error:
        if error.errno == errno.ENOTTY:
            return False
        raise KernelError(f"cannot set {ticks} expirations", errno=error.errno or 0) from error
    return True


assert sys.maxsize > 1 << 32, "struct timespec is laid out for 64-bit kernels"
