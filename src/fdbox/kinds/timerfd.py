"""timerfd: a timer (timerfd_create(2)).

    / { compatible = "fdbox,timerfd-v1";
        file@0 {
            flags;                  O_NONBLOCK
            clock; timer-flags;     CLOCK_*; TFD_TIMER_* of the last timerfd_settime(2)
            interval; remaining;    nanoseconds, when it was saved; remaining 0: disarmed
            ticks;                  expirations that were not read
            realtime; own-time;     CLOCK_REALTIME and the timer's own clock when it was saved, nanoseconds
        };
    };

What happens to the time between two kernels:

- CLOCK_MONOTONIC does not count it, as it does not count a suspend: the timer goes on with what remained when it was saved.
- CLOCK_BOOTTIME and CLOCK_REALTIME (and their alarms) do. What expired meanwhile has expired, and missed periods are counted.
- An absolute timer of CLOCK_REALTIME keeps its point in wall time, and follows the clock when that is set.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from fdbox.errors import FdtError
from fdbox.kinds.base import Kind, Ordinary, anonymous
from fdbox.kinds.freight import Made
from fdbox.linux import timerfd
from fdbox.linux.timerfd import Timer

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd

_WALL = (timerfd.REALTIME, timerfd.REALTIME_ALARM)
_CLOCKS = (*_WALL, timerfd.MONOTONIC, timerfd.BOOTTIME, timerfd.BOOTTIME_ALARM)
#: An alarm's clock is read as the clock it is an alarm of (the kernel does the same, fs/timerfd.c).
_READ_AS = {
    timerfd.REALTIME_ALARM: timerfd.REALTIME,
    timerfd.BOOTTIME_ALARM: timerfd.BOOTTIME,
}
#: two readings of one timer differ by the time between reading it and reading its clock
_TOLERANCE = 200_000_000
_MAX_TICKS = (1 << 64) - 1


class Timerfd(Ordinary):
    """A timer."""

    name = "timerfd"
    about = "a timer"
    keeps = (
        "clock, value, interval, unread expirations, cancel-on-set, O_NONBLOCK; wall-clock and boot-time timers count the time "
        "between the kernels, CLOCK_MONOTONIC ones do not"
    )
    loses = "a cancellation (ECANCELED) that was not read"
    compatible = "fdbox,timerfd-v1"
    is_portable = True

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return anonymous("timerfd")(seen)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Write down the timer, and when that was."""
        timer = timerfd.inspect(file.fd)
        node.set_u32("flags", file.look.flags & os.O_NONBLOCK)
        node.set_u32("clock", timer.clock)
        node.set_u32("timer-flags", timer.flags)
        node.set_u64("interval", timer.interval)
        node.set_u64("remaining", timer.remaining)
        node.set_u64("ticks", timer.ticks)
        node.set_u64("realtime", freight.kernel.realtime())
        node.set_u64("own-time", time.clock_gettime_ns(_READ_AS.get(timer.clock, timer.clock)))

    def same(self, file: OpenFile, saved: Node, freight: Freight) -> bool:
        """Return whether nobody has set or read it; that time went by is no change."""
        before, now = _read(saved), timerfd.inspect(file.fd)
        if file.look.flags & os.O_NONBLOCK != saved.u32("flags") or before[:3] != now[:3]:
            return False
        own = time.clock_gettime_ns(_READ_AS.get(now.clock, now.clock))
        passed = own - saved.u64("own-time")
        if bool(before.remaining) != bool(now.remaining):
            expired = passed > before.remaining - _TOLERANCE
            return bool(before.remaining) and expired and now.ticks == before.ticks + 1
        if not before.remaining:
            return now.ticks == before.ticks
        # Each expiration moves the next one by an interval and adds a tick: the difference stays.
        was = before.remaining - before.ticks * before.interval
        return abs(passed + now.remaining - now.ticks * now.interval - was) < _TOLERANCE

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return a timer that goes on."""
        saved = _read(node)
        if saved.clock not in _CLOCKS or max(saved.interval, saved.remaining) > timerfd.FOREVER:
            raise FdtError(f"{node.name} has a clock or a time that no timer has")
        gap = max(0, arrivals.kernel.realtime() - node.u64("realtime"))
        timer = saved if saved.clock == timerfd.MONOTONIC else _later(saved, gap)
        fd = timerfd.create(timer.clock, node.u32("flags") & os.O_NONBLOCK)
        try:
            _arm(fd.fileno(), timer, node.u64("realtime") + gap)
            told = timer.ticks == 0 or timerfd.set_ticks(fd.fileno(), timer.ticks)
        except BaseException:
            fd.close()
            raise
        return Made(fd) if told else Made(fd, (f"{timer.ticks} expirations that were not read",))


def _read(node: Node) -> Timer:
    return Timer(
        node.u32("clock"),
        node.u32("timer-flags"),
        node.u64("interval"),
        node.u64("remaining"),
        node.u64("ticks"),
    )


def _later(timer: Timer, passed: int) -> Timer:
    """Return what a timer is after some nanoseconds in which nobody read it."""
    if not timer.remaining or passed < timer.remaining:
        return timer._replace(remaining=max(0, timer.remaining - passed))
    over = passed - timer.remaining
    if not timer.interval:
        return timer._replace(remaining=0, ticks=timer.ticks + 1)
    ticks = min(timer.ticks + 1 + over // timer.interval, _MAX_TICKS)
    return timer._replace(remaining=timer.interval - over % timer.interval, ticks=ticks)


def _arm(fd: int, timer: Timer, now: int) -> None:
    """Set a timer; `now` is CLOCK_REALTIME as it was when `remaining` was true."""
    if timer.clock in _WALL and timer.flags & timerfd.ABSTIME:
        flags = timer.flags & (timerfd.ABSTIME | timerfd.CANCEL_ON_SET)
        value = now + timer.remaining if timer.remaining else 0
        timerfd.settime(fd, min(value, timerfd.FOREVER), timer.interval, flags)
    else:
        timerfd.settime(fd, timer.remaining, timer.interval)


KINDS: tuple[Kind, ...] = (Timerfd(),)
