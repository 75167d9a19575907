from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING

import pytest

from fdbox.keeper.store import Store, obey
from fdbox.linux import kcmp, memfd, sdnotify
from fdbox.linux.fd import OwnedFd, dup

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store(3)
    yield made
    made.close()


def message(count: int = 0, **fields: str) -> sdnotify.Message:
    return sdnotify.Message(fields, [memfd.create("m") for _ in range(count)], os.getpid())


def names(store: Store) -> list[str]:
    return [name for name, _ in store.contents()]


def test_what_is_stored_is_held_until_it_is_removed(store: Store) -> None:
    first = message(1, FDSTORE="1", FDNAME="a")
    obey(first, store)
    obey(message(1, FDSTORE="1"), store)
    obey(message(1, FDSTORE="1", FDNAME="a"), store)
    assert names(store) == ["a", "a", "stored"]
    assert kcmp.same_file(store.contents()[0][1].fileno(), first.descriptors[0].fileno())
    obey(message(FDSTOREREMOVE="1", FDNAME="a"), store)
    obey(message(FDSTOREREMOVE="1", FDNAME="unknown"), store)
    obey(message(FDSTOREREMOVE="1"), store)
    assert names(store) == ["stored"]


@pytest.mark.parametrize("name", ["a:b", "x" * 256, "", "ä", "a\tb"])
def test_what_cannot_be_a_name_is_stored_without_one(store: Store, name: str) -> None:
    obey(message(1, FDSTORE="1", FDNAME=name), store)
    assert names(store) == ["stored"]


@pytest.mark.parametrize(
    "fields", [{"FDSTORE": "0", "FDNAME": "a"}, {"BARRIER": "1"}, {"READY": "1"}]
)
def test_what_is_not_to_be_kept_is_closed(store: Store, fields: dict[str, str]) -> None:
    given = message(2, **fields)
    obey(given, store)
    assert names(store) == []
    assert all(fd.closed for fd in given.descriptors)


def test_room_ends_and_comes_back(store: Store) -> None:
    obey(message(5, FDSTORE="1", FDNAME="full"), store)
    obey(message(1, FDSTORE="1", FDNAME="more"), store)
    assert names(store) == ["full"] * 3
    obey(message(FDSTOREREMOVE="1", FDNAME="full"), store)
    obey(message(1, FDSTORE="1", FDNAME="more"), store)
    assert names(store) == ["more"]


def test_an_open_file_is_held_once(store: Store) -> None:
    given = message(1, FDSTORE="1", FDNAME="a")
    again = dup(given.descriptors[0].fileno())
    obey(given, store)
    obey(sdnotify.Message({"FDSTORE": "1", "FDNAME": "b"}, [again], 0), store)
    assert names(store) == ["a"]
    assert again.closed


@pytest.mark.parametrize("poll", ["1", "0"])
def test_a_hang_up_ends_a_stay_unless_it_is_not_polled(store: Store, poll: str) -> None:
    ours, theirs = socket.socketpair()
    given = [OwnedFd(ours.detach()), memfd.create("never hangs up")]
    obey(sdnotify.Message({"FDSTORE": "1", "FDPOLL": poll}, given, 0), store)
    assert store.drop_hung_up() == []
    theirs.close()
    readable = bool(select.select([store], [], [], 0)[0])
    dropped = store.drop_hung_up()
    assert readable == bool(dropped) == (poll == "1")
    assert len(names(store)) == 2 - len(dropped)
    assert all(name == "stored" and fd.closed for name, fd in dropped)


def test_what_cannot_be_watched_is_held_all_the_same(store: Store) -> None:
    nested = [select.epoll()]
    with contextlib.suppress(OSError):  # ELOOP: the kernel allows so many below one another
        while True:
            outer = select.epoll()
            outer.register(nested[-1], select.EPOLLIN)
            nested.append(outer)
    outer.close()
    assert 1 < len(nested) < 20
    obey(sdnotify.Message({"FDSTORE": "1"}, [dup(nested[-1].fileno())], 0), store)
    assert names(store) == ["stored"]
    for one in nested:
        one.close()
