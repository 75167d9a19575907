from __future__ import annotations

import os

import pytest

from fdbox.errors import CannotCarry
from fdbox.handover import order
from fdbox.linux import kcmp, memfd
from fdbox.linux.fd import close_all, dup


def inode(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def test_dups_share_and_reopened_files_do_not() -> None:
    a, b = memfd.create("a"), memfd.create("b")
    same, again = dup(a.fileno()), memfd.reopen(a.fileno(), os.O_RDONLY)
    third = dup(again.fileno())
    every = [a, b, same, again, third]
    fds = [fd.fileno() for fd in every]
    assert order.share(fds, inode, kcmp.order) == [[0, 2], [1], [3, 4]]
    close_all(every)


def test_only_descriptors_of_one_inode_are_compared() -> None:
    def never(_a: int, _b: int) -> int:
        raise AssertionError("compared")

    assert order.share([5, 6, 7], lambda fd: fd, never) == [[0], [1], [2]]


def test_what_is_needed_comes_first() -> None:
    names = {1: "epoll", 2: "pipe", 3: "timer"}
    assert order.arrange(names, {1: [3, 2]}) == [3, 2, 1] or order.arrange(
        names, {1: [3, 2]}
    ) == [2, 3, 1]
    assert order.arrange(names, {}) == [1, 2, 3]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(CannotCarry, match="'epoll' depends on 9"):
        order.arrange({1: "epoll"}, {1: [9]})


def test_a_circle_names_everyone_in_it() -> None:
    with pytest.raises(CannotCarry, match="depend on each other") as caught:
        order.arrange({1: "one", 2: "two", 3: "free"}, {1: [2], 2: [1]})
    assert "'one'" in str(caught.value)
    assert "'two'" in str(caught.value)
