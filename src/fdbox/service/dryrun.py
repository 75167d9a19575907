"""What an update would carry, and refuse: nothing is stopped, saved or changed for it, and nobody is told.

A box is looked at as it is sealed, up to where its files would be stopped. What only saving can tell, it does not know:
whether a kernel's copies fit into memory, and how small an image becomes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NamedTuple

from fdbox.handover import seal
from fdbox.handover.carriers import imagefolder
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.handover.seal import Load
from fdbox.linux import memfd, paths
from fdbox.linux.fd import dup
from fdbox.service.vault import is_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fdbox.linux.fd import OwnedFd
    from fdbox.model import BoxKey, Description
    from fdbox.ports import Carrier
    from fdbox.service.boxes import Box
    from fdbox.service.vault import Held, Vault


class Expected(NamedTuple):
    """What takes what, box by box, and what may still come in the way."""

    loads: list[tuple[BoxKey, list[Load]]]
    warnings: list[str]


async def expect(vault: Vault, *, images_only: bool) -> Expected:
    """Return what sealing all boxes would come to.

    Raises:
        CannotCarry: naming the first entry that nothing would carry, or without which another one cannot go.
        NoRoom: a box does not fit into the folder for images.
        FdboxError: as `seal.seal`.
    """
    by = vault.carrier.by_image() if images_only else vault.carrier.now()
    kept = {one.box: one.loads for one in vault.sealed if not images_only or is_image(one)}
    loads, sizes = [], {}
    for box in list(vault.boxes):
        if box.key not in kept:
            loads.append((box.key, _loads(vault, box, by)))
            sizes[box.key] = await _check(box, by)
        else:
            loads.append((box.key, kept[box.key]))
    return Expected(loads, list(_judge_room(sizes, by)))


def _loads(vault: Vault, box: Box[Held], by: Carrier[OwnedFd]) -> list[Load]:
    """Return what takes the entries: memory that the kernel would have to copy may still go another way."""
    found = []
    for name, held in box.entries.items():
        description, carriage = vault.describe(held)
        carrier = carriage.carrier if by.in_place and carriage.carrier else by.name
        found.append(Load(name, description.kind, carrier, description.size or 0))
    return found


async def _check(box: Box[Held], by: Carrier[OwnedFd]) -> int:
    """Return the bytes of a box that an image would have; errors as `seal.check`.

    It may change meanwhile, and to look at it may block: so it is done with descriptors of its own, in a thread.
    """
    with contextlib.ExitStack() as own:
        entries = {
            name: (own.enter_context(dup(held.fd.fileno())).fileno(), held.description)
            for name, held in box.entries.items()
        }
        return await asyncio.to_thread(_look, box.key, entries, by)


def _look(key: BoxKey, entries: Mapping[str, tuple[int, Description]], by: Carrier[OwnedFd]) -> int:
    seal.check(key, entries, by)
    return 0 if by.in_place else _size(fd for fd, _ in entries.values())


def _size(fds: Iterable[int]) -> int:
    """Return the bytes of memory that are no holes, each memory once."""
    memories = {paths.inode(fd): fd for fd in fds if memfd.accepts_seals(fd)}
    return sum(length for fd in memories.values() for _, length in memfd.data_extents(fd))


def _judge_room(sizes: dict[BoxKey, int], by: Carrier[OwnedFd]) -> Iterable[str]:
    """Raise NoRoom for a box that does not fit, as sealing it would; yield a warning if all together may not."""
    wanted = sum(sizes.values())
    if not wanted or not isinstance(by, ImageCarrier):
        return
    free = imagefolder.room(by.directory)
    for key, size in sizes.items():
        if size > free:
            raise imagefolder.no_room(by.directory, size, free, box=key.name)
    if wanted > free:
        yield (
            f"all images together have up to {wanted} bytes, and {by.directory} takes {free}: "
            "they fit only if they can be compressed"
        )
