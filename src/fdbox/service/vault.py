"""The boxes with real descriptors in them: what `put` sees of each, and sealing, which a worker thread does.

Looking at a descriptor can block where its file system belongs to its owner (FUSE). So only what cannot block is looked
at on the event loop, and what `put` has seen is remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fdbox.errors import FdboxError, InvalidDescriptor, LateWrite, NoRoom
from fdbox.handover import seal
from fdbox.handover.arrive import Loss
from fdbox.handover.carriers import single
from fdbox.kinds import registry
from fdbox.kinds.look import Look, glance, look
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import BoxKey, BoxState, Carriage, Description
from fdbox.ports import go_on
from fdbox.service.arrival import loss_from
from fdbox.service.boxes import Box, Boxes, Quota
from fdbox.service.journal import Change, NextKernel, Noted, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fdbox.handover.arrive import Arrived
    from fdbox.handover.seal import SealedBox
    from fdbox.ports import Carrier, Kernel, Reached, Shipment
    from fdbox.service.keep import Keep

T = TypeVar("T")

#: how often a box is saved again at the jump: who writes on has not heard `prepare`, and one try more changes nothing
_SAVED_AGAIN = 3

log: logging.Logger = logging.getLogger(__name__)


def is_image(sealed: SealedBox) -> bool:
    """Return whether a box was sealed without the kernel's help."""
    return sealed.shipment.carrier == seal.STREAMS


@dataclass(slots=True)
class Held:
    """A descriptor in a box. `quick` says that looking at it never blocks; `key` is what the keeper has it under, if it has."""

    fd: OwnedFd
    description: Description
    carriage: Carriage
    quick: bool
    key: str = ""

    def noted(self) -> Noted:
        """Return what is written down of it."""
        return Noted(self.key, self.description.label, self.description.kind, self.description.size)


class Vault:
    """All boxes, what is sealed of them, and what came from the last kernel."""

    def __init__(
        self,
        quota: Quota,
        carrier: Carrier[OwnedFd],
        kernel: Kernel,
        reached: Reached = go_on,
    ) -> None:
        """Begin empty."""
        self.boxes: Boxes[Held] = Boxes(quota)
        self.carrier = carrier
        self.kernel = kernel
        #: None: nothing outlives this process
        self.keep: Keep | None = None
        self.arrived: int = 0
        self.losses: list[Loss] = []
        self.reached = reached
        #: what boxes are sealed with: another one while an update wants images only
        self._by = carrier
        self._sealed: dict[BoxKey, SealedBox] = {}
        self._index: Shipment | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fdbox-seal")
        #: one at a time: what seals, unseals, or wants neither meanwhile
        self.turn: asyncio.Lock = asyncio.Lock()
        self._sealed_by_update: list[BoxKey] = []

    # --- what is in a box --------------------------------------------------------------------------------------------

    def glance(self, fds: Sequence[OwnedFd]) -> list[Held] | None:
        """Return descriptors as they are kept, or None if to look at one could block: then `examine` them.

        Raises:
            InvalidDescriptor: one cannot be read.
        """
        held = []
        for fd in fds:
            seen = glance(fd.fileno())
            if seen is None:
                return None
            held.append(self._held(fd, seen, quick=True))
        return held

    async def examine(self, fds: Sequence[OwnedFd]) -> list[Held]:
        """Return descriptors as they are kept, however long it takes to look at them; errors as `glance`."""
        return await asyncio.to_thread(lambda: [self._examined(fd) for fd in fds])

    def describe(self, held: Held) -> tuple[Description, Carriage]:
        """Return what a descriptor is now, as far as that can be told without blocking."""
        if not held.quick:
            return held.description, held.carriage
        fresh = self._held(held.fd, look(held.fd.fileno()), quick=True)
        label = fresh.description.label or held.description.label
        return Description(fresh.description.kind, fresh.description.size, label), fresh.carriage

    # --- changes -----------------------------------------------------------------------------------------------------

    async def hold(self, fresh: Sequence[Held]) -> None:
        """Make descriptors outlive this process; errors as `Keep.hold`. `forget` takes it back."""
        if self.keep is not None:
            for held, key in zip(
                fresh, await self.keep.hold([held.fd for held in fresh]), strict=True
            ):
                held.key = key

    @property
    def unheld(self) -> list[str]:
        """What has arrived, and the keeper had no room for: the names of entries."""
        return [name for box in self.boxes for name, one in box.entries.items() if not one.key]

    def forget(self, released: Sequence[Held]) -> list[OwnedFd]:
        """Let the keeper go of what is in no box any more; return the descriptors, to be closed."""
        if self.keep is not None:
            self.keep.let_go([held.fd.fileno() for held in released if held.key])
        return [held.fd for held in released]

    def create(self, key: BoxKey, *, exclusive: bool) -> tuple[Box[Held], bool]:
        """As `Boxes.create`, and NoRoom."""
        if key in self.boxes:
            return self.boxes.create(key, exclusive=exclusive)
        with self._written(Change(key.owner, key.name)):
            return self.boxes.create(key, exclusive=exclusive)

    def delete(self, key: BoxKey) -> list[OwnedFd]:
        """As `Boxes.delete`, and NoRoom."""
        with self._written(Change(key.owner, key.name, deleted=True)):
            released = self.boxes.delete(key)
        return self.forget(released)

    def put(self, key: BoxKey, new: Sequence[tuple[str, Held]], *, replace: bool) -> list[OwnedFd]:
        """As `Boxes.put`, and NoRoom."""
        noted = {name: held.noted() for name, held in new}
        with self._written(Change(key.owner, key.name, put=noted)):
            released = self.boxes.put(key, new, replace=replace)
        return self.forget(released)

    def remove(self, key: BoxKey, names: Sequence[str]) -> list[OwnedFd]:
        """As `Boxes.remove`, and NoRoom."""
        with self._written(Change(key.owner, key.name, removed=list(names))):
            released = self.boxes.remove(key, names)
        return self.forget(released)

    @contextlib.contextmanager
    def _written(self, record: Record) -> Iterator[None]:
        """Write a change down if it is made; without room for that it is not made."""
        if self.keep is None:
            yield
            return
        self.keep.prepare(record)
        yield
        self.reached("done, not written down")
        self.keep.write(record)

    # --- sealing -----------------------------------------------------------------------------------------------------

    async def seal(self, key: BoxKey) -> Box[Held]:
        """Seal a box; errors as `handover.seal.seal`, and then it is open as before."""
        async with self.turn:
            await self._seal(key)
            try:
                await self._run(self._publish)
                self._note_sealed(key, sealed=True)
            except BaseException:
                await self._undo(key)
                raise
        return self.boxes.find(key)

    async def unseal(self, key: BoxKey) -> Box[Held]:
        """Thaw a box in place; BoxNotSealed if it is open."""
        async with self.turn:
            if key in self._sealed:
                self._note_sealed(key, sealed=False)
                try:
                    await self._thaw(key)
                finally:
                    await self._run(self._publish)
            else:
                self.boxes.unseal(key)  # says why not
        return self.boxes.find(key)

    # --- as a file ---------------------------------------------------------------------------------------------------

    async def export(self, key: BoxKey, fd: int) -> None:
        """Write a box to an empty file; errors as `single.write`. Nobody changes the box meanwhile."""
        async with self.turn:
            is_open = self.boxes.find(key).state is BoxState.OPEN
            if is_open:
                self.boxes.begin_seal(key)
            try:
                entries = self._entries(key)
                await self._run(lambda: single.write(fd, key, entries, self.kernel))
            finally:
                if is_open:
                    self.boxes.undo_seal(key)

    def _note_sealed(self, key: BoxKey, *, sealed: bool) -> None:
        if self.keep is not None:
            self.keep.write(Change(key.owner, key.name, sealed=sealed))

    def note_next_kernel(self, *, loaded: bool) -> None:
        """Have the process after this one know whether there is a kernel to take back; NoRoom."""
        if self.keep is not None:
            self.keep.write(NextKernel(loaded))

    @property
    def sealed(self) -> list[SealedBox]:
        """What is sealed."""
        return list(self._sealed.values())

    def by_kernel(self, *, images_only: bool = False) -> bool:
        """Return whether the running kernel would take boxes that are sealed now."""
        return not images_only and self.carrier.now().in_place

    async def seal_all(self, progress: Callable[[str], bool], *, images_only: bool = False) -> None:
        """Seal every open box; `progress` hears of each, and returns whether to go on. `thaw_all` undoes it.

        With `images_only` what the kernel has taken already is saved again; CannotCarry if there are no images.
        """
        async with self.turn:
            if images_only:
                self._by = self.carrier.by_image()
                for key in [key for key, one in self._sealed.items() if not is_image(one)]:
                    await self._save_again(key)
            wanted = [box.key for box in self.boxes if box.state is BoxState.OPEN]
            for number, key in enumerate(wanted, 1):
                if not progress(f"box {key.name!r} of user {key.owner}, {number} of {len(wanted)}"):
                    return
                await self._seal(key)
                self._sealed_by_update.append(key)

    async def thaw_all(self) -> None:
        """Unseal what `seal_all` has sealed; what its owner had sealed before stays so.

        It undoes what failed, and that is what is told. What fails here is logged, and keeps no other box sealed.
        """
        async with self.turn:
            self._by = self.carrier
            while self._sealed_by_update:
                await self._undo(self._sealed_by_update.pop())
            await self._publish_less()

    async def commit(
        self, load: Callable[[], None], jump: Callable[[], None], *, save_again: bool = True
    ) -> None:
        """`load`, leave the index, check that what was saved is what is there, and `jump`.

        A box of which something was changed after it was saved is saved again, if that was asked for, and some times.
        Returns if this process is to end while somebody else makes the jump: then all stays as it is.

        Raises:
            LateWrite: something was changed again and again.
            FdboxError: the jump did not happen. Everything is still sealed, but a box that could not be saved again.
        """
        async with self.turn:
            await self._run(load)
            await self._run(self.kernel.sync)
            await self._run(self._publish)
            for _ in range(_SAVED_AGAIN if save_again else 0):
                changed = await self._run(lambda: self._jump(jump))
                if not changed:
                    return
                for key in changed:
                    await self._save_again(key)
                await self._run(self._publish)
            changed = await self._run(lambda: self._jump(jump))
            if changed:
                raise next(iter(changed.values()))

    def _jump(self, jump: Callable[[], None]) -> dict[BoxKey, LateWrite]:
        """Jump, or return what was changed after it was saved. Nothing may come between the comparison and the jump."""
        changed = {}
        for key, sealed in self._sealed.items():
            try:
                sealed.verify()
            except LateWrite as error:
                changed[key] = error
        if not changed:
            jump()
        return changed

    async def _save_again(self, key: BoxKey) -> None:
        before = self._sealed.pop(key)
        try:
            await self._run(before.thaw)
            self._sealed[key] = await self._save(key)
        except BaseException:
            self.boxes.unseal(key)
            if key in self._sealed_by_update:
                self._sealed_by_update.remove(key)
            else:
                self._note_sealed(key, sealed=False)
            raise
        log.info("%s is saved again", key)

    async def _seal(self, key: BoxKey) -> None:
        self.boxes.begin_seal(key)
        try:
            self._sealed[key] = await self._save(key)
        except BaseException:
            self.boxes.undo_seal(key)
            raise
        self.boxes.end_seal(key)
        self.reached("sealed")

    async def _save(self, key: BoxKey) -> SealedBox:
        entries = self._entries(key)
        sealed = await self._run(lambda: seal.seal(key, entries, self._by, self.kernel))
        for entry, sentence in sealed.lost:
            log.warning("%s: the next kernel will not have of %r: %s", key, entry, sentence)
        return sealed

    def _entries(self, key: BoxKey) -> dict[str, tuple[int, Description]]:
        held = self.boxes.find(key).entries
        return {name: (one.fd.fileno(), one.description) for name, one in held.items()}

    async def _thaw(self, key: BoxKey) -> None:
        """Let a box go on, also where what was saved of it cannot be taken away."""
        try:
            await self._run(self._sealed.pop(key).thaw)
            self.reached("thawed")
        finally:
            self.boxes.unseal(key)

    async def _undo(self, key: BoxKey) -> None:
        """Let a box go on after something failed: that is told, so what fails here is logged."""
        try:
            await self._thaw(key)
        except Exception:
            log.exception("%s is open, and what was saved of it may still be there", key)

    def _publish(self) -> None:
        """Replace the index of all sealed boxes, so that they cross whoever makes the jump."""
        self._index = seal.write_index(
            list(self._sealed.values()), self._by, self.kernel, self._index
        )

    async def _publish_less(self) -> None:
        """Have the index name open boxes no more, after something failed: that is told, so what fails here is logged."""
        try:
            await self._run(self._publish)
        except Exception:
            log.exception("the next kernel may be given boxes that are open by now")

    async def _run(self, work: Callable[[], T]) -> T:
        """Do what may take long in the one worker, to its end: a caller who goes away must not leave half of it."""
        future = asyncio.get_running_loop().run_in_executor(self._worker, work)
        return await asyncio.shield(future)

    # --- the last kernel, and the end --------------------------------------------------------------------------------

    def take_over(self, keep: Keep) -> None:
        """Take in what the process before this one held; for the daemon's start, before anybody connects."""
        self.keep = keep
        contents = keep.contents
        for key, box in contents.boxes.items():
            found = {}
            for name, noted in box.entries.items():
                held = found[name] = self._remembered(keep.take(noted.key), noted)
                held.key = noted.key
            self.boxes.adopt(key, found)
        self.arrived = sum(contents.arrived.values())
        self.losses += [loss_from(record) for record in contents.lost]
        self.losses += [Loss(*one, "the keeper does not have it any more") for one in keep.missing]

    def _remembered(self, fd: OwnedFd, noted: Noted) -> Held:
        """Return a descriptor as it was noted; it is looked at only where that never blocks, and does not fail."""
        try:
            seen = glance(fd.fileno())
        except InvalidDescriptor:
            seen = None
        if seen is not None:
            held = self._held(fd, seen, quick=True)
            held.description = held.description._replace(label=noted.label)
            return held
        kind = registry.by_name(noted.kind)
        description = Description(kind.name, noted.size, noted.label)
        return Held(fd, description, kind.carriage(None, self.carrier), quick=False)

    def readmit(self, entry: Arrived) -> Held:
        """Return what came from the last kernel as it is kept."""
        held = self._examined(entry.fd)
        held.description = held.description._replace(label=entry.label)
        return held

    def _examined(self, fd: OwnedFd) -> Held:
        seen = glance(fd.fileno())
        return self._held(fd, seen or look(fd.fileno()), quick=seen is not None)

    def _held(self, fd: OwnedFd, seen: Look, *, quick: bool) -> Held:
        kind = registry.recognise(seen)
        return Held(fd, kind.describe(seen), kind.carriage(seen, self.carrier), quick)

    async def take_back_next_kernel(self) -> None:
        """Unload what the process before this one had loaded for an update that ended with it."""
        if self.keep is None or not self.keep.contents.next_kernel:
            return
        try:
            await asyncio.to_thread(self.kernel.unload)
        except FdboxError as error:
            log.error("the next kernel is still loaded: %s", error)  # noqa: TRY400 - the sentence says it all
            return
        self.note_next_kernel(loaded=False)

    async def seal_again(self) -> None:
        """Seal what was sealed when the process before this one ended: what it had saved has ended with it, or is old."""
        has_past = self.keep is not None and bool(self.keep.contents.boxes)
        self._index = await self._run(lambda: self.carrier.claim(has_past=has_past))
        if self.keep is None:
            return
        wanted = [key for key, box in self.keep.contents.boxes.items() if box.sealed]
        async with self.turn:
            failed = await self._seal_together(wanted)
            short = [key for key, error in failed.items() if isinstance(error, NoRoom)]
            if short:  # what the process before this one had saved has made way by now
                failed = {key: failed[key] for key in failed if key not in short}
                failed |= await self._seal_together(short)
        for key, why in failed.items():
            loss = Loss(key, "", f"it was sealed, and is open now: {why}")
            log.error("%s %s", key, loss.reason)
            self.losses.append(loss)
            self.keep.write(Change(key.owner, key.name, sealed=False))

    async def _seal_together(self, wanted: Sequence[BoxKey]) -> dict[BoxKey, Exception]:
        """Seal boxes, and have the next incarnation know of all of them at once; return what failed, and is open.

        An index that named some would let go of what was saved of the others: a power cut would find neither.
        """
        failed: dict[BoxKey, Exception] = {}
        for key in wanted:
            try:
                await self._seal(key)
            except Exception as error:  # noqa: BLE001 - it is returned
                failed[key] = error
        try:
            await self._run(self._publish)
        except Exception as why:  # noqa: BLE001 - it is returned
            for key in [key for key in wanted if key not in failed]:
                await self._undo(key)
            await self._publish_less()
            failed = {key: failed.get(key, why) for key in wanted}
        return failed

    async def hand_over(self) -> list[tuple[str, OwnedFd]]:
        """Return the descriptors by their keys, for the process that takes over, and drop what is saved of them."""
        async with self.turn:
            await self._drop_saved()
            entries = [one for box in self.boxes for one in box.entries.values()]
            held = {one.key: one.fd for one in entries if one.key}
            released = self.boxes.clear()
            close_all(one.fd for one in released if held.get(one.key) is not one.fd)
            self.carrier.close()
        self._worker.shutdown()
        return list(held.items())

    async def close(self) -> None:
        """Let go of everything, at the end of the daemon."""
        async with self.turn:
            await self._drop_saved()
            await self._run(lambda: close_all(held.fd for held in self.boxes.clear()))
            self.carrier.close()
        self._worker.shutdown()

    async def _drop_saved(self) -> None:
        if self._index is not None:
            self._index.release()
            self._index = None
        for sealed in self._sealed.values():
            await self._run(sealed.end)
        self._sealed.clear()
