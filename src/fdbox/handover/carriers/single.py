"""One box as one file, which somebody takes to another machine. The file is what the image carrier writes of a box."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from fdbox.errors import CannotCarry, LateWrite, ManifestInvalid, NoRoom, SameIncarnation
from fdbox.handover import arrive, manifest, seal
from fdbox.handover.carriers import chunks, imagefile
from fdbox.handover.manifest import FIRST_TOKEN
from fdbox.kinds import registry
from fdbox.model import Carriage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fdbox.handover.arrive import Arrived, Loss
    from fdbox.handover.carriers.imagefile import Stored
    from fdbox.linux.fd import OwnedFd
    from fdbox.model import BoxKey, Description
    from fdbox.ports import Kernel, Parcel, Shipment, Stream

#: what to do where the file has no room
FREE_SOME = "free some there, or write to another file system"
_ALL_ALIKE = "every kind that this file has must make sense here, too"


def write(
    fd: int, box: BoxKey, entries: Mapping[str, tuple[int, Description]], kernel: Kernel
) -> None:
    """Write a box to an empty file, borrowed; the box goes on as it is.

    Raises:
        CannotCarry: naming the entry that makes no sense on another machine.
        LateWrite: somebody has changed it meanwhile.
        NoRoom, KernelError, OSError: as sealing, and writing.
    """
    for name, (_, description) in entries.items():
        if description.kind not in PORTABLE:
            why = "it is of this machine, and means nothing on another"
            raise seal.cannot_carry(box, name, description.kind, Carriage(None, why, _REMEDY))
    sealed = seal.seal(box, entries, _Writing(fd), kernel)
    try:
        sealed.verify()
    except LateWrite as error:
        remedy = "stop who writes to it (kill -STOP), and export again"
        raise LateWrite(error.message, remedy=remedy, **error.context) from error
    finally:
        sealed.thaw()


def read(fd: int, owner: int, kernel: Kernel) -> tuple[BoxKey, dict[str, Arrived], list[Loss]]:
    """Return the box in a file, borrowed: what it was, its entries, and what of them could not be made.

    Args:
        fd: The file.
        owner: Whose box it is to be here: nothing is made for him where he could not.
        kernel: This one.

    Raises:
        ManifestInvalid: it is damaged, or has what no export has.
        SameIncarnation: the kernel that runs now has written it.
        NoRoom: not even its manifest fits into memory.
    """
    with _of_a_file():
        delivery = _Reading(imagefile.read(fd), kernel)
        with delivery.take(FIRST_TOKEN) as stored:
            saved = manifest.read_manifest(manifest.fetch(stored.fileno()), kernel.incarnation())
    for compatible, _ in saved.components:
        if registry.by_compatible(compatible).name not in PORTABLE:
            raise ManifestInvalid(f"the file has {compatible!r}: {_ALL_ALIKE}")
    entries, losses = arrive.load_box(delivery, kernel, owner)
    return saved.box, entries, losses


#: the kinds that make sense on another machine
PORTABLE: frozenset[str] = frozenset(
    name for name, kind in registry.CARRIED.items() if kind.is_portable
)
_REMEDY = f"take it out of the box; what can be exported is {', '.join(sorted(PORTABLE))}"


@contextlib.contextmanager
def _of_a_file() -> Iterator[None]:
    """Say what to do about a file, where an error only knows what to do about what came from the last kernel."""
    try:
        yield
    except SameIncarnation as error:
        remedy = "import it on another machine, or after the next boot"
        raise SameIncarnation(error.message, remedy=remedy) from error
    except ManifestInvalid as error:
        if error.remedy != ManifestInvalid.remedy:
            raise
        remedy = "copy it again; what another version of fdbox has written, import with that"
        raise ManifestInvalid(error.message, remedy=remedy) from error


class _Writing:
    """The carrier that a box is sealed with, to be written."""

    name = "image"
    in_place = False
    streams = True

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def now(self) -> _Writing:
        """Return this one."""
        return self

    def by_image(self) -> _Writing:
        """Return this one."""
        return self

    def close(self) -> None:
        """Do nothing: the file is its owner's."""

    def carriage(self) -> Carriage:
        """Return that there is a file."""
        return Carriage(self.name)

    def probe(self, fd: int, kind: str) -> Carriage:  # noqa: ARG002 - of a device there is nothing to write
        """Return that no device goes into a file."""
        return Carriage(None, f"a {kind} goes into no file", _REMEDY)

    def ship(self, name: str, replacing: Shipment | None = None) -> _Shipment:  # noqa: ARG002 - there is one file
        """Begin to write."""
        return _Shipment(name, self._fd)

    def claim(self, *, has_past: bool) -> None:
        """Return None: nothing is left of another process."""

    def indexes(self) -> tuple[str, ...]:
        """Return nothing: a file has no index."""
        return ()

    def tidy(self) -> None:
        """Do nothing: the file is its owner's."""

    def receive(self, name: str) -> None:
        """Return None: `read` reads."""

    def resume(self, name: str, fd: OwnedFd) -> _Reading:
        """Raise CannotCarry: nothing is ever received."""
        raise CannotCarry(f"{name} did not come by a file ({fd})")


class _Shipment:
    """What is written."""

    carrier = "image"

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self._fd = fd
        self._parcels: dict[int, Parcel] = {}
        self._chunks: dict[int, tuple[chunks.Chunk, ...]] = {}

    def add(self, parcels: Sequence[Parcel]) -> None:
        """Write; NoRoom if it is known beforehand that there is too little."""
        _check_room(self._fd, parcels)
        self._chunks = imagefile.write(self._fd, parcels)
        self._parcels = {parcel.token: parcel for parcel in parcels}

    def is_unchanged(self, token: int) -> bool:
        """Return whether the bytes of a parcel are those that were written."""
        return imagefile.is_unchanged(self._parcels[token], self._chunks[token])

    def discard(self) -> None:
        """Do nothing: the file is its owner's."""

    def release(self) -> None:
        """Do nothing, likewise."""


def _check_room(fd: int, parcels: Sequence[Parcel]) -> None:
    wanted = imagefile.room_for(parcels)
    there = os.fstatvfs(fd)
    free = there.f_bavail * there.f_frsize
    if there.f_blocks and wanted > free:  # without blocks it does not say what is free
        raise NoRoom(
            f"a file of {wanted} bytes does not fit where {free} are free", remedy=FREE_SOME
        )


class _Reading:
    """A delivery from a file."""

    def __init__(self, stored: dict[int, Stored], kernel: Kernel) -> None:
        self._stored = stored
        self._kernel = kernel

    def fileno(self) -> int:
        """Never asked: nothing hangs on it."""
        raise ValueError("a file that is read by hand has no holder")

    def take(self, token: int) -> OwnedFd:
        """Return a parcel as a memfd.

        Raises:
            ManifestInvalid: it is damaged, or there is none.
            NoRoom: it does not fit into memory.
        """
        if token not in self._stored:
            raise ManifestInvalid(f"the file has nothing under the token {token}")
        stored = self._stored[token]
        if stored.size > (free := self._kernel.free_memory()):
            raise NoRoom(
                f"its {stored.size} bytes do not fit into memory, of which {free} are free",
                remedy="free memory, and import it again",
            )
        with _of_a_file():
            return imagefile.to_memory(stored, "fdbox-image")

    def stream(self, token: int) -> Stream | None:
        """Return the bytes of a parcel, or None if there is none."""
        stored = self._stored.get(token)
        return None if stored is None else imagefile.Watched(stored, _of_a_file)

    def finish(self, *, whole: bool = True) -> None:
        """Do nothing: the file is its owner's."""

    def abandon(self) -> None:
        """Do nothing, likewise."""
