from __future__ import annotations

import fcntl
import os
import select
import time
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.linux import timerfd
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fdbox.linux.fd import OwnedFd
    from tests.kinds.conformance import World

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
CLOCKS = {
    "realtime": timerfd.REALTIME,
    "monotonic": timerfd.MONOTONIC,
    "boottime": timerfd.BOOTTIME,
}


def timer(
    clock: int,
    value: int = 0,
    interval: int = 0,
    *,
    flags: int = 0,
    ticks: int = 0,
    nonblock: bool = False,
) -> Callable[[Path], Entries]:
    def make(folder: Path) -> Entries:
        fd = timerfd.create(clock, os.O_NONBLOCK if nonblock else 0)
        start = time.clock_gettime_ns(clock) if flags & timerfd.ABSTIME else 0
        timerfd.settime(fd.fileno(), start + value if value else 0, interval, flags)
        if ticks:
            assert timerfd.set_ticks(fd.fileno(), ticks)
        return {"timer": fd}

    return make


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    fd = fds["timer"]
    found = timerfd.inspect(fd)
    readable = bool(select.select([fd], [], [], 0)[0])
    read = int.from_bytes(os.read(fd, 8), "little") if readable else 0
    hours = round(found.remaining / HOUR)  # a crossing takes minutes where the machine is emulated
    return [found.clock, found.interval, hours, found.ticks, read, fcntl.fcntl(fd, fcntl.F_GETFL)]


def disturb(fds: Mapping[str, int]) -> None:
    timerfd.settime(fds["timer"], 3 * HOUR)


def fired(folder: Path) -> Entries:
    entries = timer(timerfd.MONOTONIC, 1)(folder)
    select.select([entries["timer"].fileno()], [], [])
    return entries


def sample(name: str, make: Callable[[Path], Entries]) -> Sample:
    return Sample(f"timerfd {name}", {"timer": "timerfd"}, make, observe, disturb)


SAMPLES = [
    sample("disarmed", timer(timerfd.MONOTONIC, nonblock=True)),
    *(sample(f"{name} once", timer(clock, 2 * HOUR)) for name, clock in CLOCKS.items()),
    *(sample(f"{name} periodic", timer(clock, 2 * HOUR, HOUR)) for name, clock in CLOCKS.items()),
    sample("unread", timer(timerfd.MONOTONIC, HOUR, HOUR, ticks=7)),
    sample("fired", fired),
    sample("absolute", timer(timerfd.REALTIME, 2 * HOUR, HOUR, flags=timerfd.ABSTIME)),
    sample("monotonic absolute", timer(timerfd.MONOTONIC, 2 * HOUR, flags=timerfd.ABSTIME)),
]


def after_a_gap(world: World, make: Callable[[Path], Entries], gap: int) -> OwnedFd:
    """Return the timer after some nanoseconds without a kernel."""
    one = sample("gap", make)
    world.jump(one, world.make(one))
    world.kernel.gap = gap
    entries, losses = world.arrive()
    assert losses == []
    return entries["timer"]


def check(fd: OwnedFd, remaining: int, ticks: int) -> None:
    found = timerfd.inspect(fd.fileno())
    assert abs(found.remaining - remaining) < SECOND
    assert found.ticks == ticks


def test_the_monotonic_clock_stands_still(world: World) -> None:
    check(after_a_gap(world, timer(timerfd.MONOTONIC, 2 * HOUR), 3 * HOUR), 2 * HOUR, 0)


@pytest.mark.parametrize("clock", [timerfd.REALTIME, timerfd.BOOTTIME])
@pytest.mark.parametrize(
    ("value", "interval", "ticks", "remaining", "expired"),
    [
        (4 * HOUR, 0, 0, HOUR, 0),
        (2 * HOUR, 0, 0, 0, 1),
        (HOUR, 5 * HOUR, 0, 3 * HOUR, 1),
        (HOUR + HOUR // 2, HOUR, 4, HOUR // 2, 6),
        (0, 0, 0, 0, 0),
    ],
)
def test_the_gap_counts_for_other_clocks(
    world: World, clock: int, value: int, interval: int, ticks: int, remaining: int, expired: int
) -> None:
    made = timer(clock, value, interval, ticks=ticks)
    check(after_a_gap(world, made, 3 * HOUR), remaining, expired)


def test_an_absolute_timer_keeps_its_point_in_wall_time(world: World) -> None:
    flags = timerfd.ABSTIME | timerfd.CANCEL_ON_SET
    fd = after_a_gap(world, timer(timerfd.REALTIME, 2 * HOUR, flags=flags), HOUR)
    found = timerfd.inspect(fd.fileno())
    # Only the injected clock was moved on: the kernel's still has all of it to go.
    assert abs(found.remaining - 2 * HOUR) < SECOND
    assert found.flags == flags


def test_an_absolute_timer_that_was_due_meanwhile_has_expired(world: World) -> None:
    made = timer(timerfd.REALTIME, 2 * HOUR, flags=timerfd.ABSTIME)
    check(after_a_gap(world, made, 3 * HOUR), 0, 1)


def test_a_clock_that_went_back_is_no_gap(world: World) -> None:
    check(after_a_gap(world, timer(timerfd.BOOTTIME, 2 * HOUR), -HOUR), 2 * HOUR, 0)


def test_time_that_goes_by_is_no_late_write(world: World) -> None:
    for make in (
        timer(timerfd.MONOTONIC, SECOND // 100, SECOND // 500),
        timer(timerfd.REALTIME, SECOND // 100),
    ):
        entries = make(world.folder)
        world.made.append(entries)
        sealed = world.seal(entries)
        time.sleep(0.1)
        sealed.verify()
        sealed.thaw()


@pytest.mark.root
def test_an_alarm_clock_is_kept_where_there_is_one(world: World) -> None:
    fd = after_a_gap(world, timer(timerfd.BOOTTIME_ALARM, 2 * HOUR), HOUR)
    check(fd, HOUR, 0)
    assert timerfd.inspect(fd.fileno()).clock == timerfd.BOOTTIME_ALARM
