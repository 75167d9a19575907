from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdbox.errors import CannotCarry
from fdbox.handover import order
from fdbox.linux import kcmp, memfd

#: descriptor -> (inode, open file description)
Files = list[tuple[int, int]]
FILES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20)


@given(FILES)
def test_what_shares_one_open_file_is_one_group_in_the_order_given(files: Files) -> None:
    compared = []

    def compare(a: int, b: int) -> int:
        compared.append((a, b))
        return (files[a][1] > files[b][1]) + 2 * (files[a][1] < files[b][1])

    groups = order.share(range(len(files)), lambda fd: files[fd][0], compare)

    expected: dict[tuple[int, int], list[int]] = {}
    for index, file in enumerate(files):
        expected.setdefault(file, []).append(index)
    assert groups == list(expected.values())
    assert all(files[a][0] == files[b][0] for a, b in compared)


def test_a_thousand_of_one_inode_take_few_comparisons() -> None:
    count = 0

    def compare(a: int, b: int) -> int:
        nonlocal count
        count += 1
        return (a > b) + 2 * (a < b)

    assert len(order.share(range(1000), lambda fd: 0, compare)) == 1000
    assert count < 1000 * 12


def test_the_kernel_tells_dups_from_reopened_files() -> None:
    with (
        memfd.create("a") as a,
        memfd.create("b") as b,
        a.dup() as a_again,
        memfd.reopen(a.fileno(), os.O_RDWR) as a_other,
        a_other.dup() as a_other_again,
    ):
        fds = [each.fileno() for each in (a_other, a, b, a_again, a_other_again)]
        groups = order.share(fds, lambda fd: os.fstat(fd).st_ino, kcmp.order)
    assert groups == [[0, 4], [1, 3], [2]]


def test_what_needs_nothing_stays_where_it_is() -> None:
    names = {3: "c", 1: "a", 2: "b"}
    assert order.levels(names, {3: (), 1: ()}) == [[3, 1, 2]]


def test_what_is_needed_comes_first() -> None:
    names = {1: "epoll", 2: "socket", 3: "timer", 4: "pipe"}
    assert order.levels(names, {1: (2, 3), 3: (2,)}) == [[2, 4], [3], [1]]


def test_what_needs_the_same_comes_together() -> None:
    names = {1: "one end", 2: "queued", 3: "other end"}
    assert order.levels(names, {1: (2,), 3: (2,)}) == [[2], [1, 3]]


@given(st.permutations(range(6)), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_everything_comes_once_and_after_what_it_needs(
    given_order: list[int], pairs: set[tuple[int, int]]
) -> None:
    needs = {item: [low for high, low in pairs if high == item > low] for item in given_order}
    levels = order.levels({item: str(item) for item in given_order}, needs)
    level_of = {item: number for number, level in enumerate(levels) for item in level}
    assert sorted(level_of) == sorted(given_order)
    for level in levels:
        assert level == sorted(level, key=given_order.index)
    assert all(
        level_of[other] < level_of[item] for item, wanted in needs.items() for other in wanted
    )


@pytest.mark.parametrize("needs", [{1: (1,)}, {1: (2,), 2: (1,)}, {1: (2,), 2: (3,), 3: (1,)}])
def test_a_circle_is_named(needs: dict[int, tuple[int, ...]]) -> None:
    names = {1: "inner", 2: "outer", 3: "third", 4: "innocent"}
    with pytest.raises(CannotCarry, match="depend on each other") as caught:
        order.levels(names, needs)
    for item, name in names.items():
        assert (repr(name) in caught.value.message) == (item in needs)


def test_one_descriptor_is_compared_with_nothing() -> None:
    def compare(a: int, b: int) -> int:
        raise AssertionError((a, b))

    assert order.share([5, 6], lambda fd: fd, compare) == [[0], [1]]
    assert order.share([], lambda fd: fd, compare) == []
