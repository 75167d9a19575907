from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fdbox.keeper.store import Store
from fdbox.linux import kcmp, sdnotify
from fdbox.linux.fd import OwnedFd

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store(3)
    yield made
    made.close()


def message(count: int = 0, **fields: str) -> sdnotify.Message:
    return sdnotify.Message(fields, [OwnedFd(os.dup(0)) for _ in range(count)], os.getpid())


def names(store: Store) -> list[str]:
    return [name for name, _ in store.contents()]


def test_what_is_stored_is_held_until_it_is_removed(store: Store) -> None:
    store.take(message(1, FDSTORE="1", FDNAME="a"))
    store.take(message(1, FDSTORE="1"))
    store.take(message(1, FDSTORE="1", FDNAME="a"))
    assert names(store) == ["a", "a", "stored"]
    assert kcmp.same_file(store.contents()[0][1].fileno(), 0)
    store.take(message(FDSTOREREMOVE="1", FDNAME="a"))
    store.take(message(FDSTOREREMOVE="1", FDNAME="unknown"))
    assert names(store) == ["stored"]


@pytest.mark.parametrize(
    ("count", "fields"),
    [
        (4, {"FDSTORE": "1", "FDNAME": "too many"}),
        (1, {"FDSTORE": "1", "FDNAME": "a:b"}),
        (1, {"FDSTORE": "1", "FDNAME": "x" * 256}),
        (1, {"FDSTORE": "1", "FDNAME": ""}),
        (1, {"FDSTORE": "0", "FDNAME": "a"}),
        (1, {"BARRIER": "1"}),
        (2, {"READY": "1"}),
    ],
)
def test_what_is_not_kept_is_closed(store: Store, count: int, fields: dict[str, str]) -> None:
    given = message(count, **fields)
    store.take(given)
    assert names(store) == []
    assert all(fd.closed for fd in given.descriptors)


def test_room_comes_back(store: Store) -> None:
    store.take(message(3, FDSTORE="1", FDNAME="full"))
    store.take(message(1, FDSTORE="1", FDNAME="more"))
    assert names(store) == ["full"] * 3
    store.take(message(FDSTOREREMOVE="1", FDNAME="full"))
    store.take(message(1, FDSTORE="1", FDNAME="more"))
    assert names(store) == ["more"]
