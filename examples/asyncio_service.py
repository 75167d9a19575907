#!/usr/bin/env python3
"""An asyncio server whose selector, timer and sockets are in a box: they outlive the process, and the kernel.

Whoever connects is told how often the timer has gone off, and what was put into the queue. Start it, kill it, start it
again: nobody is refused, no tick is missed, and what is queued waits.

The box holds an epoll, and everything that it watches. An epoll finds its items by the number of the descriptor that they
were added by, so each entry is named after its number, and gets that number again before the loop starts.

Before an update of the kernel the loop's own socket must leave the epoll: nothing of it is in the box. So a program that
lives to hear `prepare` (Client.subscribe) closes its loop then; one that was stopped or killed has left already.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import selectors
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import fdbox
from fdbox.linux import timerfd

if TYPE_CHECKING:
    from collections.abc import Iterator

BOX = "asyncio-service"
TICK = 200_000_000  # nanoseconds
NAMES = ("epoll", "listener", "timer", "queue", "feed")
#: where the descriptors are: high, so that nothing else is there when the program starts
FIRST = 200


class BoxedSelector(selectors.BaseSelector):
    """A selector on an epoll that may watch some of its files already."""

    def __init__(self, number: int) -> None:
        """Use the epoll of a borrowed descriptor."""
        self._epoll = select.epoll.fromfd(number)
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:  # type: ignore[explicit-override]
        """Watch a file, also if the epoll does so already."""
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        try:
            self._epoll.register(number, _mask(events))
        except FileExistsError:
            self._epoll.modify(number, _mask(events))
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:  # type: ignore[explicit-override]
        """Watch it no longer."""
        key = self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())
        self._epoll.unregister(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:  # type: ignore[explicit-override]
        """Watch it for something else."""
        return self.register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:  # type: ignore[explicit-override]
        """Return what is ready."""
        wait = None if timeout is None else max(0.0, timeout)
        found = self._epoll.poll(wait, max(len(self._keys), 1))
        return [
            (key, _events(mask) & key.events)
            for number, mask in found
            if (key := self._keys.get(number)) is not None
        ]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:  # type: ignore[explicit-override]
        """Return what is watched, by descriptor number or object."""
        return _ByObject(self._keys)

    def close(self) -> None:  # type: ignore[explicit-override]
        """Let go of the keys. The epoll lives on in the box."""
        self._keys.clear()


class _ByObject(Mapping[Any, selectors.SelectorKey]):
    def __init__(self, keys: dict[int, selectors.SelectorKey]) -> None:
        self._keys = keys

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:  # type: ignore[explicit-override]
        return self._keys[fileobj if isinstance(fileobj, int) else fileobj.fileno()]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[explicit-override]
        return iter(self._keys)

    def __len__(self) -> int:  # type: ignore[explicit-override]
        return len(self._keys)


def _mask(events: int) -> int:
    reading = select.EPOLLIN if events & selectors.EVENT_READ else 0
    return reading | (select.EPOLLOUT if events & selectors.EVENT_WRITE else 0)


def _events(mask: int) -> int:
    reading = selectors.EVENT_READ if mask & ~select.EPOLLOUT else 0
    return reading | (selectors.EVENT_WRITE if mask & ~select.EPOLLIN else 0)


def make() -> dict[str, int]:
    """Return new descriptors, each under its number, of which the epoll watches those that are read from."""
    listener = socket.create_server(("127.0.0.1", 0))
    queue, feed = socket.socketpair()
    timer = timerfd.create(timerfd.MONOTONIC, os.O_NONBLOCK)
    timerfd.settime(timer.fileno(), TICK, TICK)
    with select.epoll() as epoll:
        opened = [one.fileno() for one in (epoll, listener, timer, queue, feed)]
        numbers = {name: FIRST + index for index, name in enumerate(NAMES)}
        for name, one in zip(NAMES, opened, strict=True):
            os.dup2(one, numbers[name], inheritable=False)
        for name in ("listener", "timer", "queue"):
            epoll.register(numbers[name], select.EPOLLIN)
    listener.close()
    queue.close()
    feed.close()
    timer.close()
    return numbers


def recover(box: fdbox.Box) -> dict[str, int]:
    """Return the descriptors that are in the box, each under the number that it had."""
    numbers = {}
    for entry, fd in box.get_many([entry.name for entry in box.list()]).items():
        name, _, number = entry.partition("@")
        with fd:
            numbers[name] = os.dup2(fd.fileno(), int(number), inheritable=False)
    return numbers


class Service:
    """What the loop does."""

    def __init__(self, numbers: dict[str, int]) -> None:
        """Borrow descriptors."""
        self.numbers = numbers
        self.ticks = 0
        self.read = ""

    async def run(self) -> None:
        """Serve for ever."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.numbers["timer"], self.tick)
        loop.add_reader(self.numbers["queue"], self.take)
        listener = socket.socket(fileno=self.numbers["listener"])
        async with await asyncio.start_server(self.answer, sock=listener) as server:
            print(f"serving at {listener.getsockname()[1]}", flush=True)
            await server.serve_forever()

    def tick(self) -> None:
        """Count what the timer has counted."""
        self.ticks += int.from_bytes(os.read(self.numbers["timer"], 8), "little")

    def take(self) -> None:
        """Take what is in the queue."""
        self.read += os.read(self.numbers["queue"], 4096).decode()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tell what there was; what the one who connects sends goes into the queue."""
        writer.write(f"ticks={self.ticks} read={self.read}\n".encode())
        os.write(self.numbers["feed"], await reader.read())
        writer.close()


def main() -> None:
    """Take everything out of the box, or put it in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", help="the socket of fdbox")
    options = parser.parse_args()
    with fdbox.connect(options.socket) as client:
        box = client.box(BOX)
        numbers = recover(box)
        print("recovered" if numbers else "new", flush=True)
        if not numbers:
            numbers = make()
            box.put_many({f"{name}@{number}": number for name, number in numbers.items()})
    service = Service(numbers)
    loop = asyncio.SelectorEventLoop(BoxedSelector(numbers["epoll"]))
    loop.run_until_complete(service.run())


if __name__ == "__main__":
    main()
