"""A box, as a program without asyncio sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fdbox.client import calls
from fdbox.client.memory import Memory, adopt, new_memory
from fdbox.errors import EntryExists, EntryNotFound
from fdbox.linux.fd import OwnedFd, close_all

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterable, Mapping

    from fdbox.client.calls import Answer, Descriptor, R, Request
    from fdbox.varlink import interface


class Caller(Protocol):
    """What a box needs of the client that opened it."""

    def call(self, request: Request[R]) -> Answer[R]:
        """Return the answer to a call, or raise the error that it is."""


class Box:
    """A named set of entries; every method asks the daemon."""

    def __init__(self, client: Caller, name: str, owner: int | None) -> None:
        """Only a client does this; `owner` None means its own user."""
        self._client = client
        self.name = name
        self.owner = owner

    def put(self, name: str, descriptor: Descriptor, *, replace: bool = False) -> interface.Entry:
        """Put a descriptor (or what has one) under `name`; the caller's own stays open.

        Raises:
            EntryExists: the name is taken, and `replace` was not asked for.
            BoxSealed: the box takes no changes now.
            QuotaExceeded: the owner would hold too much.
        """
        return self.put_many({name: descriptor}, replace=replace)[0]

    def put_many(
        self, entries: Mapping[str, Descriptor], *, replace: bool = False
    ) -> builtins.list[interface.Entry]:
        """Put up to 253 descriptors, all or none; errors as for `put`."""
        request = calls.put(self.name, self.owner, entries, replace=replace)
        return self._client.call(request).parameters.entries

    def get(self, name: str) -> OwnedFd:
        """Return the descriptor under `name`; EntryNotFound if there is none."""
        return self.get_many([name])[name]

    def get_many(self, names: Iterable[str]) -> dict[str, OwnedFd]:
        """Return the descriptors under `names`, all or an error. More than 253 take several calls."""
        found: dict[str, OwnedFd] = {}
        wanted = list(dict.fromkeys(names))
        try:
            for request in calls.get(self.name, self.owner, wanted):
                calls.sort_out(self._client.call(request), found)
            calls.check_complete(found, wanted)
        except BaseException:
            close_all(found.values())
            raise
        return found

    def list(self) -> builtins.list[interface.Entry]:
        """Return what is in the box, and what can carry it across a kexec on this machine."""
        return self._client.call(calls.list_entries(self.name, self.owner)).parameters.entries

    def remove(self, *names: str) -> None:
        """Remove entries; EntryNotFound if one is not there."""
        self._client.call(calls.remove(self.name, self.owner, names))

    def seal(self) -> interface.Box:
        """Freeze and save everything in the box."""
        return self._client.call(calls.seal(self.name, self.owner)).parameters.box

    def unseal(self) -> interface.Box:
        """Let the originals go on where they are."""
        return self._client.call(calls.unseal(self.name, self.owner)).parameters.box

    def compact(self) -> builtins.list[interface.Compacted]:
        """Put memory together into huge pages, in place; BoxSealed."""
        return self._client.call(calls.compact(self.name, self.owner)).parameters.entries

    def export(self, file: Descriptor) -> int:
        """Write the box to an empty file, open for reading and writing, for another machine; return its bytes. For root."""
        request = calls.export_box(self.name, self.owner, file)
        return self._client.call(request).parameters.bytes

    def delete(self) -> None:
        """Delete the box and let go of everything in it."""
        self._client.call(calls.delete_box(self.name, self.owner))

    def memory(self, name: str, size: int | None = None, *, huge: bool = True) -> Memory:
        """Return the memory under `name`, recovered if it is there, else created with `size` bytes.

        Raises:
            SizeMismatch: it is there with another size.
            EntryNotFound: it is not there, and no size was given.
            UsageError: what is there is not memory.
        """
        try:
            return adopt(name, self.get(name), size, huge=huge, recovered=True)
        except EntryNotFound:
            if size is None:
                raise
        with new_memory(name, size) as fresh:
            try:
                self.put(name, fresh)
            except EntryExists:  # somebody was faster
                return adopt(name, self.get(name), size, huge=huge, recovered=True)
            return adopt(name, fresh.dup(), size, huge=huge, recovered=False)
