from __future__ import annotations

import fcntl
import os
import resource
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry
from fdbox.linux import epoll, kcmp, pipe, timerfd
from fdbox.linux.fd import OwnedFd, close_all
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.kinds.conformance import World

IN, OUT, ET, ONESHOT = select.EPOLLIN, select.EPOLLOUT, select.EPOLLET, select.EPOLLONESHOT
HOUR = 3600 * 1_000_000_000


def eventfd(count: int = 0) -> OwnedFd:
    return OwnedFd(os.eventfd(count, os.EFD_CLOEXEC))


def ready(fd: int) -> list[list[int]]:
    """Return (events, data) of what is ready, by data; one call takes all."""
    return sorted([events, data] for events, data in epoll.wait(fd))


def simple(folder: Path) -> Entries:
    """One counter that is ready, one that is not, one that is watched for something else, with 64 bits of data each."""
    made = epoll.create()
    entries = {"epoll": made, "full": eventfd(3), "empty": eventfd(), "writable": eventfd()}
    epoll.add(made.fileno(), entries["full"].fileno(), IN, 0xFEEDFACE_CAFEBEEF)
    epoll.add(made.fileno(), entries["empty"].fileno(), IN, 2)
    epoll.add(made.fileno(), entries["writable"].fileno(), OUT, 3)
    return entries


def observe_simple(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    before = ready(fds["epoll"])
    os.eventfd_write(fds["empty"], 1)
    after = ready(fds["epoll"])
    items = sorted((item.events, item.data) for item in epoll.items(fds["epoll"]))
    return [before, after, items]


def everything(folder: Path) -> Entries:
    """A listener with nobody there, a pipe with a byte, a counter, a timer, each with user data, and shared by dup."""
    listener = socket.create_server(("127.0.0.1", 0))
    reading, writing = pipe.create()
    os.write(writing.fileno(), b"x")
    timer = timerfd.create(timerfd.MONOTONIC)
    timerfd.settime(timer.fileno(), 1)
    select.select([timer.fileno()], [], [])
    made = epoll.create()
    entries = {
        "epoll": made,
        "listener": OwnedFd(listener.detach()),
        "pipe": reading,
        "other end": writing,
        "counter": eventfd(),
        "timer": timer,
    }
    for data, name in enumerate(("listener", "pipe", "counter", "timer"), 0x100000001):
        epoll.add(made.fileno(), entries[name].fileno(), IN | (ET if name == "pipe" else 0), data)
    return {**entries, "epoll again": made.dup(), "counter again": entries["counter"].dup()}


def observe_everything(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    seen = [ready(fds["epoll"]), ready(fds["epoll again"])]
    seen.append([[int.from_bytes(os.read(fds["timer"], 8), "little")]])
    os.eventfd_write(fds["counter again"], 1)
    seen += [ready(fds["epoll"])]
    with socket.socket(fileno=os.dup(fds["listener"])) as listener:
        client = socket.create_connection(listener.getsockname())
        seen += [ready(fds["epoll"])]
        listener.accept()[0].close()
        client.close()
    os.eventfd_read(fds["counter"])
    seen += [ready(fds["epoll"]), [[kcmp.order(fds["epoll"], fds["epoll again"])]]]
    return seen


def nested(folder: Path) -> Entries:
    inner, outer, outermost = epoll.create(), epoll.create(), epoll.create()
    counter = eventfd(1)
    epoll.add(inner.fileno(), counter.fileno(), IN, 1)
    epoll.add(outer.fileno(), inner.fileno(), IN, 2)
    epoll.add(outermost.fileno(), outer.fileno(), IN, 3)
    epoll.add(outermost.fileno(), counter.fileno(), IN, 4)
    return {"outermost": outermost, "outer": outer, "counter": counter, "inner": inner}


def observe_nested(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    before = [ready(fds[name]) for name in ("outermost", "outer", "inner")]
    os.eventfd_read(fds["counter"])
    return [before, [ready(fds[name]) for name in ("outermost", "outer", "inner")]]


def under(number: int, fd: OwnedFd) -> int:
    """Have a descriptor's file under a number, too; the caller closes it."""
    return os.dup2(fd.fileno(), number, inheritable=False)


def used_again(folder: Path) -> Entries:
    """One open file under two numbers, and one number for two open files."""
    made, first, second = epoll.create(), eventfd(1), eventfd(1)
    for number, fd, data in ((700, first, 1), (701, first, 2), (700, second, 3)):
        under(number, fd)
        epoll.add(made.fileno(), number, IN, data)
        os.close(number)
    return {"epoll": made, "first": first, "second": second}


def observe_used_again(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    """Items are modified by a program that has its descriptors under their old numbers."""
    seen = [ready(fds["epoll"])]
    for number, name in ((700, "first"), (701, "first"), (700, "second")):
        with OwnedFd(fds[name]) as borrowed:
            under(number, borrowed)
            borrowed.detach()
        epoll.modify(fds["epoll"], number, IN, 10 * number)
        os.close(number)
    return [*seen, ready(fds["epoll"])]


def once(folder: Path) -> Entries:
    """One-shot items: one that has reported, of a file that is ready; one that has not."""
    made, spent, armed = epoll.create(), eventfd(1), eventfd()
    epoll.add(made.fileno(), spent.fileno(), IN | ONESHOT, 1)
    assert ready(made.fileno()) == [[IN, 1]]
    epoll.add(made.fileno(), armed.fileno(), IN | ONESHOT, 2)
    return {"epoll": made, "spent": spent, "armed": armed}


def observe_once(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    seen = [ready(fds["epoll"])]
    os.eventfd_write(fds["armed"], 1)
    return [*seen, ready(fds["epoll"]), ready(fds["epoll"])]


def add_late(fds: Mapping[str, int]) -> None:
    fd = next(fd for name, fd in fds.items() if name in ("writable", "second", "counter"))
    fresh = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 800)
    epoll.add(fds.get("epoll", fds.get("inner", -1)), fresh, OUT, 99)
    os.close(fresh)


def kinds(epolls: tuple[str, ...], **others: str) -> dict[str, str]:
    return dict.fromkeys(epolls, "epoll") | others


COUNTERS = ("full", "empty", "writable")
SAMPLES = [
    Sample(
        "epoll of nothing",
        {"epoll": "epoll"},
        lambda folder: {"epoll": epoll.create()},
        lambda fds, folder: ready(fds["epoll"]),
    ),
    Sample(
        "epoll of counters",
        kinds(("epoll",)) | dict.fromkeys(COUNTERS, "eventfd"),
        simple,
        observe_simple,
        add_late,
    ),
    Sample(
        "epoll of everything, shared by dup",
        kinds(("epoll", "epoll again"))
        | {
            "listener": "tcp-socket",
            "pipe": "pipe",
            "other end": "pipe",
            "counter": "eventfd",
            "counter again": "eventfd",
            "timer": "timerfd",
        },
        everything,
        observe_everything,
        add_late,
    ),
    Sample(
        "epoll of epolls",
        kinds(("outermost", "outer", "inner"), counter="eventfd"),
        nested,
        observe_nested,
        add_late,
    ),
    Sample(
        "epoll with numbers used again",
        kinds(("epoll",), first="eventfd", second="eventfd"),
        used_again,
        observe_used_again,
        add_late,
    ),
    Sample(
        "epoll of what reports once",
        kinds(("epoll",), spent="eventfd", armed="eventfd"),
        once,
        observe_once,
    ),
]


def test_what_is_watched_and_in_no_entry_is_named(world: World) -> None:
    entries = simple(world.folder)
    world.made.append(entries)
    number = entries["empty"].fileno()
    left = {name: fd for name, fd in entries.items() if name != "empty"}
    with pytest.raises(
        CannotCarry, match=rf"'epoll'.*watches what was descriptor {number} \(inode"
    ) as caught:
        world.seal(left)
    assert caught.value.context["entry"] == "epoll"
    assert "same box" in caught.value.remedy


def test_an_item_goes_with_what_it_watches(world: World) -> None:
    """The kernel drops the item when the open file is gone, so there is nothing to miss."""
    entries = simple(world.folder)
    entries.pop("empty").close()
    world.made.append(entries)
    sealed = world.seal(entries)
    sealed.thaw()


def test_a_number_above_the_limit_is_told(world: World) -> None:
    sample = SAMPLES[4]
    world.jump(sample, world.make(sample))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
    try:
        entries, (loss,) = world.arrive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(entries) == {"first", "second"}
    assert loss.entry == "epoll"
    assert "RLIMIT_NOFILE" in loss.reason


@pytest.mark.slow
def test_a_thousand_anonymous_files_are_found(world: World) -> None:
    made = epoll.create()
    entries = {"epoll": made}
    for number in range(1000):
        entries[f"{number}"] = eventfd(number % 2)
        epoll.add(made.fileno(), entries[f"{number}"].fileno(), IN, number)
    sample = Sample("many", {}, lambda folder: entries, lambda fds, folder: None)
    world.made.append(entries)
    world.jump(sample, entries)
    arrived, losses = world.arrive()
    assert losses == []
    found = epoll.wait(arrived["epoll"].fileno(), 2000)
    assert sorted(data for _, data in found) == list(range(1, 1000, 2))


def test_what_it_watches_must_have_arrived(world: World) -> None:
    reading, writing = pipe.create()
    made = epoll.create()
    epoll.add(made.fileno(), reading.fileno(), IN, 1)
    entries = {"epoll": made, "pipe": reading, "write": writing}
    sample = Sample("lost", {}, lambda folder: entries, lambda fds, folder: None)
    world.made.append(entries)
    world.jump(sample, entries)
    delivery = next(one for name, one in world.carrier.incoming.items() if name != "fdbox")
    close_all([delivery.files.pop(1)])  # the component of the pipes
    arrived, losses = world.arrive()
    assert arrived == {}
    assert {loss.entry for loss in losses} == {"epoll", "pipe", "write"}
    assert "what it depends on did not arrive" in losses[-1].reason
