"""How the memory in boxes lies, what it will cost an update, and putting it together: the methods Predict and Compact."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdbox.errors import BoxSealed
from fdbox.handover import cost
from fdbox.handover.seal import RESERVE
from fdbox.linux import layout, mapping, memfd, paths
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.linux.layout import Layout
from fdbox.model import BoxState
from fdbox.service import replies
from fdbox.service.access import require_root
from fdbox.service.connection import Call, Reply
from fdbox.varlink import interface

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.model import BoxKey
    from fdbox.ports import Kernel
    from fdbox.service.live import LiveUpdate
    from fdbox.service.vault import Vault

#: the kinds whose pages the kernel can carry where they are
_IN_PLACE = ("memfd", "tmpfs-file")


@dataclass(frozen=True, slots=True)
class Compacted:
    """How a memory lay, how it lies now, and why not all of it could be put together."""

    before: Layout
    after: Layout
    left: str


class Layouts:
    """The two methods."""

    def __init__(self, vault: Vault, live: LiveUpdate) -> None:
        self._vault = vault
        self._live = live

    async def predict(self, call: Call) -> Reply:
        """Predict."""
        require_root(call.peer, "looking at everybody's memory")
        seen: set[tuple[int, int]] = set()
        turn = await asyncio.to_thread(cost.turn_seconds)
        boxes, total = [], Layout()
        for key in [box.key for box in self._vault.boxes]:
            found = await self._survey(key, seen)
            total = total.plus(found)
            boxes.append(_prediction(key.name, key.owner, found, turn))
        whole = _prediction("", 0, total, turn)
        return Reply(interface.PredictReply(boxes=boxes, total=whole))

    async def compact(self, call: Call) -> Reply:
        """Compact."""
        key = replies.key(call.peer, replies.parameters(interface.BoxRequest, call))
        self._live.check_changes_allowed()
        async with self._vault.turn:
            if self._vault.boxes.find(key).state is not BoxState.OPEN:
                raise BoxSealed(
                    f"box {key.name!r} is sealed: its pages must stay where they are", box=key.name
                )
            with self._memories(key) as memories:
                entries = [
                    _compacted(name, await asyncio.to_thread(compact, fd, self._vault.kernel))
                    for name, fd in memories.items()
                ]
        return Reply(interface.CompactReply(entries=entries))

    async def _survey(self, key: BoxKey, seen: set[tuple[int, int]]) -> Layout:
        """Return how a box lies; what another box has, too, counts there."""
        found = Layout()
        with self._memories(key) as memories:
            for fd in memories.values():
                inode = paths.inode(fd.fileno())
                if inode not in seen:
                    seen.add(inode)
                    found = found.plus(await asyncio.to_thread(layout.survey, fd.fileno()))
        return found

    @contextmanager
    def _memories(self, key: BoxKey) -> Iterator[dict[str, OwnedFd]]:
        """Give the memories of a box, of which nobody else can close these descriptors."""
        held = self._vault.boxes.find(key).entries
        found = {
            name: one.fd.dup() for name, one in held.items() if one.description.kind in _IN_PLACE
        }
        try:
            yield found
        finally:
            close_all(found.values())


def compact(fd: OwnedFd, kernel: Kernel) -> Compacted:
    """Put a memory's pages together into huge ones, where it hardly has holes. Who has it mapped sees no change."""
    left: Counter[str] = Counter()
    with memfd.reopen(fd.fileno(), os.O_RDONLY) as own:
        before = layout.survey(own.fileno())
        for start in layout.may_collapse(own.fileno()):
            if kernel.free_memory() < RESERVE + mapping.HUGE:
                left["free memory: there is hardly any left"] += 1
                break
            if code := layout.collapse(own.fileno(), start):
                left[f"{errno.errorcode.get(code, code)}: {mapping.collapse_remedy(code)}"] += 1
        after = layout.survey(own.fileno())
    reasons = [f"2 MiB, {count} times: {reason}" for reason, count in left.items()]
    if small := after.folios - after.huge:
        reasons.append(f"{small} small page{' is' if small == 1 else 's are'} left")
    return Compacted(before, after, "; ".join(reasons))


def _compacted(name: str, done: Compacted) -> interface.Compacted:
    return interface.Compacted(
        entry=name, before=_layout(done.before), after=_layout(done.after), left=done.left
    )


def _layout(found: Layout) -> interface.Layout:
    return interface.Layout(pages=found.pages, huge_pages=found.huge, runs=found.runs)


def _prediction(box: str, owner: int, found: Layout, turn: float) -> interface.Prediction:
    costs = cost.predict(found, turn)
    return interface.Prediction(
        box=box,
        owner=owner,
        layout=_layout(found),
        preserve_seconds=costs.preserve,
        boot_seconds=costs.boot,
        retrieve_seconds=costs.retrieve,
    )
