"""Boxes to and from files that move to other machines: the methods Export and Import."""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, InvalidDescriptor, KernelError, NoRoom
from fdbox.handover.carriers import single
from fdbox.linux import paths
from fdbox.linux.files import FULL
from fdbox.model import BoxKey
from fdbox.service import replies
from fdbox.service.access import require_root, resolve_owner
from fdbox.service.connection import Call, Reply
from fdbox.varlink import interface

if TYPE_CHECKING:
    from fdbox.handover.arrive import Arrived
    from fdbox.service.live import Discard, LiveUpdate
    from fdbox.service.vault import Held, Vault


class Transfer:
    """The two methods."""

    def __init__(self, vault: Vault, live: LiveUpdate, discard: Discard) -> None:
        """`discard` closes descriptors off the event loop."""
        self._vault = vault
        self._live = live
        self._discard = discard

    async def export_box(self, call: Call) -> Reply:
        """Export."""
        require_root(call.peer, "exporting a box")
        request = replies.parameters(interface.Export, call)
        key = BoxKey(resolve_owner(call.peer, request.owner, request.box), request.box)
        self._vault.boxes.find(key)
        self._live.check_changes_allowed()
        file = call.take(request.file_descriptor)
        try:
            _check_empty(file.fileno())
            await self._vault.export(key, file.fileno())
            size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise _failed("write", error) from error
        finally:
            self._discard([file])
        return Reply(interface.ExportReply(bytes=size))

    async def import_box(self, call: Call) -> Reply:
        """Import."""
        require_root(call.peer, "importing a box")
        request = replies.parameters(interface.Import, call)
        owner = resolve_owner(call.peer, request.owner, request.box or "")
        self._live.check_changes_allowed()
        file = call.take(request.file_descriptor)
        kernel = self._vault.kernel
        try:
            _check_file(file.fileno())
            saved, entries, lost = await asyncio.to_thread(
                single.read, file.fileno(), owner, kernel
            )
        except OSError as error:
            raise _failed("read", error) from error
        finally:
            self._discard([file])
        key = BoxKey(owner, request.box or saved.name)
        new = await self._take_in(key, entries)
        return Reply(
            interface.ImportReply(
                box=replies.box(self._vault.boxes.find(key)),
                entries=[replies.entry(name, one.description, one.carriage) for name, one in new],
                lost=[replies.loss(loss) for loss in lost],
            )
        )

    async def _take_in(self, key: BoxKey, entries: dict[str, Arrived]) -> list[tuple[str, Held]]:
        """Put what was made into a new box, all or nothing."""
        try:
            new = [(name, self._vault.readmit(one)) for name, one in entries.items()]
            held = [one for _, one in new]
            await self._vault.hold(held)
        except BaseException:
            self._discard([one.fd for one in entries.values()])
            raise
        try:
            self._make(key, new)
        except BaseException:
            self._discard(self._vault.forget(held))
            raise
        return new

    def _make(self, key: BoxKey, new: list[tuple[str, Held]]) -> None:
        """Make the box. Nothing comes between the question whether boxes may change, and the change."""
        self._live.check_changes_allowed()
        self._vault.create(key, exclusive=True)
        try:
            self._vault.put(key, new, replace=False)
        except BaseException:
            self._vault.delete(key)
            raise


def _check_file(fd: int) -> None:
    """Raise InvalidDescriptor for what is no file: to read a device, or to open a FIFO anew, could have effects."""
    if not paths.is_regular(fd):
        raise InvalidDescriptor(
            "what is to be imported is no regular file",
            remedy="name a file that `fdbox export` has written",
        )


def _check_empty(fd: int) -> None:
    """Raise InvalidDescriptor unless it is an empty file that can be written."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    writable = flags & os.O_ACCMODE == os.O_RDWR and not flags & (os.O_APPEND | os.O_PATH)
    if not writable or not paths.is_regular(fd) or os.fstat(fd).st_size:
        raise InvalidDescriptor(
            "the file to export to is no empty regular file, opened for reading and writing",
            remedy="open it with O_RDWR | O_CREAT | O_EXCL",
        )


def _failed(what: str, error: OSError) -> FdboxError:
    sentence = f"cannot {what} the file: {error.strerror}"
    if error.errno in FULL:
        return NoRoom(sentence, remedy=single.FREE_SOME)
    return KernelError(sentence, errno=error.errno or 0)
