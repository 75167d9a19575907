"""What is the same, and what has to be there first."""

from __future__ import annotations

import functools
import graphlib
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from fdbox.errors import CannotCarry

T = TypeVar("T")

#: kcmp(2): 0 the same open file description, 1 the first sorts before the second, 2 after.
Compare = Callable[[int, int], int]


def share(
    fds: Sequence[int], inode: Callable[[int], Hashable], compare: Compare
) -> list[list[int]]:
    """Return the indices into `fds` in groups that share one open file description, in the order they first come.

    Only descriptors of one inode are compared, and those are sorted: n log n system calls, not n².
    """
    by_inode: dict[Hashable, list[int]] = {}
    for index, fd in enumerate(fds):
        by_inode.setdefault(inode(fd), []).append(index)
    groups: list[list[int]] = []
    for candidates in by_inode.values():
        groups += _equal_runs(candidates, lambda a, b: _sign(compare(fds[a], fds[b])))
    return sorted(sorted(group) for group in groups)


def _sign(order: int) -> int:
    return {0: 0, 1: -1}.get(order, 1)


def _equal_runs(items: list[int], compare: Callable[[int, int], int]) -> list[list[int]]:
    if len(items) == 1:
        return [items]
    key = functools.cmp_to_key(compare)
    ordered = sorted(items, key=key)
    return [list(run) for _, run in itertools.groupby(ordered, key=key)]


def levels(names: Mapping[T, str], needs: Mapping[T, Sequence[T]]) -> list[list[T]]:
    """Return the keys of `names` in groups, each after all that it needs; within a group in the order given.

    `names` are the entries, for errors.

    Raises:
        CannotCarry: two need each other; both are named.
    """
    sorter = graphlib.TopologicalSorter({item: needs.get(item, ()) for item in names})
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        circle = " and ".join(dict.fromkeys(repr(names[item]) for item in error.args[1]))
        raise CannotCarry(
            f"the entries {circle} depend on each other", remedy="remove one of them"
        ) from error
    numbers = {item: number for number, item in enumerate(names)}
    groups: list[list[T]] = []
    while ready := sorter.get_ready():
        groups.append(sorted(ready, key=numbers.__getitem__))
        sorter.done(*ready)
    return groups
