"""What each method of io.fdbox does: from the call to the boxes, and back."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from fdbox.errors import BoxNotFound, UsageError
from fdbox.service import replies
from fdbox.service.access import ROOT, require_operator, require_root
from fdbox.service.connection import Call, Handler, Reply
from fdbox.service.layout import Layouts
from fdbox.service.live import Discard, LiveUpdate, Plan
from fdbox.service.transfer import Transfer
from fdbox.varlink import interface, wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from fdbox.linux.fd import OwnedFd
    from fdbox.model import BoxKey
    from fdbox.service.vault import Held, Vault


_LONGEST = 86400
_LONGEST_NAME = 255

#: Has the code now on disk take over, and returns its version.
Replace = Callable[[], Awaitable[str]]

StructT = TypeVar("StructT", bound=msgspec.Struct)


class Methods:
    """The handlers, by method name in `table`."""

    def __init__(  # noqa: PLR0913 - the parts that methods work with
        self,
        vault: Vault,
        live: LiveUpdate,
        discard: Discard,
        replace: Replace,
        *,
        version: str,
        timeout: float,
        images: Path | None,
    ) -> None:
        """`discard` closes descriptors off the event loop; `replace` has other code take over.

        `timeout` (seconds) is an update's default, `images` the folder of images.
        """
        self._vault = vault
        self._boxes = vault.boxes
        self._live = live
        self._discard = discard
        self._replace = replace
        self._version = version
        self._timeout = timeout
        self._images = images
        self._transfer = Transfer(vault, live, discard)
        self._layouts = Layouts(vault, live)

    def table(self) -> dict[str, Handler]:
        """Return the handlers."""
        return {
            "CreateBox": self.create_box,
            "DeleteBox": self.delete_box,
            "ListBoxes": self.list_boxes,
            "Put": self.put,
            "Get": self.get,
            "Remove": self.remove,
            "ListEntries": self.list_entries,
            "Export": self._transfer.export_box,
            "Import": self._transfer.import_box,
            "Predict": self._layouts.predict,
            "Compact": self._layouts.compact,
            "Seal": self.seal,
            "Unseal": self.unseal,
            "Update": self.update,
            "LastUpdate": self.last_update,
            "AbortUpdate": self.abort_update,
            "Subscribe": self.subscribe,
            "Ready": self.ready,
            "Status": self.status,
            "Reexec": self.reexec,
        }

    # --- boxes -------------------------------------------------------------------------------------------------------

    def create_box(self, call: Call) -> Reply:
        """CreateBox."""
        request = replies.parameters(interface.CreateBox, call)
        key = replies.key(call.peer, request)
        try:
            self._boxes.find(key)
        except BoxNotFound:
            self._live.check_changes_allowed()
        box, created = self._vault.create(key, exclusive=bool(request.exclusive))
        return Reply(interface.CreateBoxReply(box=replies.box(box), created=created))

    def delete_box(self, call: Call) -> Reply:
        """DeleteBox."""
        key = replies.key(call.peer, replies.parameters(interface.BoxRequest, call))
        self._live.check_changes_allowed()
        self._discard(self._vault.delete(key))
        return Reply(interface.Nothing())

    def list_boxes(self, call: Call) -> Reply:
        """ListBoxes."""
        visible = self._boxes.visible_to(call.peer.uid)
        return Reply(interface.ListBoxesReply(boxes=[replies.box(box) for box in visible]))

    # --- entries -----------------------------------------------------------------------------------------------------

    def put(self, call: Call) -> Reply | Coroutine[Any, Any, Reply]:
        """Put."""
        request = replies.parameters(interface.Put, call)
        key = replies.key(call.peer, request)
        self._boxes.find(key)
        brought = call.brought([entry.file_descriptor for entry in request.entries])
        fresh = self._vault.glance(brought)
        if fresh is None or self._vault.keep is not None:
            return self._put_slowly(call, key, fresh, brought)
        return self._keep(call, key, fresh)

    async def _put_slowly(
        self, call: Call, key: BoxKey, fresh: list[Held] | None, brought: list[OwnedFd]
    ) -> Reply:
        """Look at what could block; have the keeper hold what would die with us."""
        request = replies.parameters(interface.Put, call)
        names = [entry.name for entry in request.entries]
        with self._boxes.reserved(key, names, replace=bool(request.replace)):
            if fresh is None:
                fresh = await self._vault.examine(brought)
            await self._vault.hold(fresh)
        try:
            return self._keep(call, key, fresh)
        except BaseException:
            self._vault.forget(fresh)
            raise

    def _keep(self, call: Call, key: BoxKey, fresh: Sequence[Held]) -> Reply:
        """Store what was looked at. The descriptors stay the call's until nothing can fail any more."""
        request = replies.parameters(interface.Put, call)
        self._live.check_changes_allowed()
        new = [(entry.name, held) for entry, held in zip(request.entries, fresh, strict=True)]
        released = self._vault.put(key, new, replace=bool(request.replace))
        call.take_all([entry.file_descriptor for entry in request.entries])
        self._discard(released)
        entries = [replies.entry(name, held.description, held.carriage) for name, held in new]
        return Reply(interface.EntriesReply(entries=entries))

    def get(self, call: Call) -> Reply:
        """Get."""
        request = replies.parameters(interface.NamesRequest, call)
        if len(request.names) > wire.MAX_DESCRIPTORS:
            raise UsageError(
                f"{len(request.names)} descriptors do not fit into one message",
                remedy=f"get at most {wire.MAX_DESCRIPTORS} at a time",
            )
        found = self._boxes.get(replies.key(call.peer, request), request.names)
        entries = [
            interface.Attachment(name=name, file_descriptor=index)
            for index, name in enumerate(request.names)
        ]
        return Reply(interface.GetReply(entries=entries), [held.fd.fileno() for held in found])

    def remove(self, call: Call) -> Reply:
        """Remove."""
        request = replies.parameters(interface.NamesRequest, call)
        key = replies.key(call.peer, request)
        self._live.check_changes_allowed()
        self._discard(self._vault.remove(key, request.names))
        return Reply(interface.Nothing())

    def list_entries(self, call: Call) -> Reply:
        """ListEntries."""
        box = self._boxes.find(
            replies.key(call.peer, replies.parameters(interface.BoxRequest, call))
        )
        entries = [
            replies.entry(name, *self._vault.describe(held)) for name, held in box.entries.items()
        ]
        return Reply(interface.EntriesReply(entries=entries))

    # --- sealing -----------------------------------------------------------------------------------------------------

    async def seal(self, call: Call) -> Reply:
        """Seal."""
        key = replies.key(call.peer, replies.parameters(interface.BoxRequest, call))
        self._boxes.find(key)
        self._live.check_changes_allowed()
        return Reply(interface.BoxReply(box=replies.box(await self._vault.seal(key))))

    async def unseal(self, call: Call) -> Reply:
        """Unseal."""
        key = replies.key(call.peer, replies.parameters(interface.BoxRequest, call))
        self._boxes.find(key)
        self._live.check_changes_allowed()
        return Reply(interface.BoxReply(box=replies.box(await self._vault.unseal(key))))

    # --- the daemon itself -------------------------------------------------------------------------------------------

    async def reexec(self, call: Call) -> Reply:
        """Reexec."""
        require_operator(call.peer, os.geteuid(), "replacing the daemon")
        return Reply(interface.ReexecReply(version=await self._replace()))

    # --- updates -----------------------------------------------------------------------------------------------------

    async def update(self, call: Call) -> AsyncIterator[Reply]:
        """Update."""
        require_root(call.peer, "an update")
        request = replies.parameters(interface.Update, call)
        timeout = self._timeout if request.timeout_seconds is None else request.timeout_seconds
        if not 0 <= timeout <= _LONGEST:
            raise UsageError(
                f"a timeout of {timeout} s cannot be", remedy=f"use 0 to {_LONGEST} seconds"
            )
        if request.kernel is None and request.carrier != "image":
            raise UsageError(
                "without a next kernel there is nothing that could carry but images",
                remedy="name a kernel, or ask for the image carrier (fdbox update --reboot)",
            )
        kernel, initrd = _take_images(call, request)
        plan = Plan(
            kernel,
            initrd,
            request.command_line,
            timeout,
            proceed_at_deadline=request.on_deadline == "proceed",
            save_again=request.on_late_write != "abort",
            dry_run=bool(request.dry_run),
            images_only=request.carrier == "image",
            force=bool(request.force),
        )
        steps = self._live.run(plan)
        try:
            async for step in steps:
                yield Reply(step, last=step.phase == "checked")
        finally:
            await steps.aclose()  # type: ignore[attr-defined]  # it is a generator, so that it can be closed

    def last_update(self, call: Call) -> Reply:
        """LastUpdate."""
        require_root(call.peer, "reading how an update went")
        return Reply(self._live.last.report())

    def abort_update(self, call: Call) -> Reply:
        """AbortUpdate."""
        require_root(call.peer, "calling an update off")
        self._live.abort()
        return Reply(interface.Nothing())

    async def subscribe(self, call: Call) -> AsyncIterator[Reply]:
        """Subscribe."""
        events = self._live.subscribe(
            replies.parameters(interface.Subscribe, call).name[:_LONGEST_NAME]
        )
        try:
            async for event in events:
                yield Reply(event, last=False)
        finally:
            await events.aclose()  # type: ignore[attr-defined]  # as above

    def ready(self, call: Call) -> Reply:
        """Ready."""
        self._live.ready(replies.parameters(interface.Ready, call).subscriber)
        return Reply(interface.Nothing())

    def status(self, call: Call) -> Reply:
        """Status."""
        has = self._vault.carrier.carriage()
        visible = self._boxes.visible_to(call.peer.uid)
        machine, keep = self._live.machine, self._vault.keep
        return Reply(
            interface.StatusReply(
                version=self._version,
                incarnation=self._vault.kernel.incarnation(),
                phase=machine.phase.value,
                waiting=machine.waiting if call.peer.uid == ROOT else [],
                carrier=has.carrier,
                obstacle=has.obstacle,
                remedy=has.remedy,
                boxes=len(visible),
                entries=sum(len(box.entries) for box in visible),
                arrived=self._vault.arrived,
                lost=[
                    replies.loss(loss)
                    for loss in self._vault.losses
                    if replies.may_know(call.peer, loss)
                ],
                images="" if self._images is None else str(self._images),
                kept=keep is not None and keep.has_keeper,
            )
        )


def _take_images(call: Call, request: interface.Update) -> tuple[OwnedFd | None, OwnedFd | None]:
    kernel = None if request.kernel is None else call.take(request.kernel)
    try:
        return kernel, None if request.initrd is None else call.take(request.initrd)
    except BaseException:
        if kernel is not None:
            kernel.close()
        raise
