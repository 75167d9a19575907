"""Several open file descriptions of one thing: a memory, or a pipe, is saved once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdbox.kinds.look import OpenFile

#: the files of one inode, each with its number among all
SameInode = list[tuple[int, "OpenFile"]]


def by_inode(files: Sequence[OpenFile]) -> list[SameInode]:
    """Return the files of each inode together, in the order they first come."""
    groups: dict[tuple[int, int], SameInode] = {}
    for index, file in enumerate(files):
        groups.setdefault(file.look.inode, []).append((index, file))
    return list(groups.values())


def numbers_of(groups: Sequence[SameInode]) -> list[int]:
    """Return the number of each file's group, file by file."""
    places = [(at, number) for number, group in enumerate(groups) for at, _ in group]
    return [number for _, number in sorted(places)]
