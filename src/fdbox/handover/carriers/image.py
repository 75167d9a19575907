"""The image carrier: sealed boxes as files, for kernels without a Live Update Orchestrator, and for a plain reboot.

    DIRECTORY/INCARNATION/index             which boxes were sealed when the kernel of that boot id ended
    DIRECTORY/INCARNATION/NAME.image        one box
    DIRECTORY/INCARNATION/NAME.done         one that has arrived, while others have not
    DIRECTORY/INCARNATION/NAME.kept         one of which something could not be made again: for somebody who still can
    DIRECTORY/INCARNATION/*.new             what is being written; without a meaning

A power cut at any point leaves either the boxes as an index names them, or none. A file is complete, and safe
(fsync), before it gets its name; the index comes after the boxes; it is replaced in one step; and no box goes before
an index is safe that does not name it. An arrival takes the index away first, and the boxes after it. When all has come, what no
index names is removed: it was not sealed yet when its kernel ended.

What is in the folder of the running kernel's own incarnation is never read: nothing is loaded where it was saved.
Memory goes as it was when it was sealed; what is written to it late, `is_unchanged` notices.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from typing import TYPE_CHECKING

from fdbox.errors import CannotCarry
from fdbox.handover.carriers import chunks, imagefile, imagefolder
from fdbox.handover.carriers.imagedelivery import Delivery
from fdbox.handover.manifest import INDEX_SESSION
from fdbox.linux import files, paths
from fdbox.model import Carriage
from fdbox.ports import ParcelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fdbox.linux.fd import OwnedFd
    from fdbox.ports import Kernel, Parcel, Shipment

log: logging.Logger = logging.getLogger(__name__)


class ImageCarrier:
    """Files in a folder."""

    name = "image"
    in_place = False
    streams = True

    def __init__(self, directory: Path, kernel: Kernel) -> None:
        """Take the folder, which is made when it is needed."""
        self.directory = directory
        self._kernel = kernel
        #: what was shipped and not discarded, and what the published index can name
        self.live: dict[str, _Shipment] = {}
        self._published: frozenset[str] = frozenset()
        self._lock: OwnedFd | None = None

    @property
    def own(self) -> Path:
        """Where this incarnation writes."""
        return self.directory / self._kernel.incarnation()

    def now(self) -> ImageCarrier:
        """Return this one."""
        return self

    def by_image(self) -> ImageCarrier:
        """Return this one."""
        return self

    def carriage(self) -> Carriage:
        """Return whether the folder is there, or can be made, outlives the kernel, and is this process's."""
        if (why := imagefolder.obstacle(self.directory)) is not None:
            return why
        try:
            if self.directory.exists() and not self._has_lock():
                return imagefolder.used_by_another(self.directory)
        except OSError as error:
            return imagefolder.cannot_write(self.directory, error.errno or 0)
        return Carriage(self.name)

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _has_lock(self) -> bool:
        """Return whether the folder is this process's: two would take each other's files away. OSError.

        Another folder may have been put in its place: that has a lock of its own.
        """
        if not self.directory.is_dir():
            return False
        if self._lock is not None:
            held, there = os.fstat(self._lock.fileno()), self.directory.stat()
            if not os.path.samestat(held, there):
                self.close()
        if self._lock is None:
            self._lock = files.lock_folder(self.directory)
        return self._lock is not None

    def probe(self, fd: int, kind: str) -> Carriage:  # noqa: ARG002 - of a device there is nothing to write
        """Return that no device goes into a file."""
        return Carriage(
            None, f"only a kernel could carry a {kind}, and this one carries nothing", _NO_DEVICE
        )

    def ship(self, name: str, replacing: Shipment | None = None) -> _Shipment:
        """Begin a shipment; the file is there when it is complete."""
        return _Shipment(self, name, replacing)

    def claim(self, *, has_past: bool) -> _Shipment | None:
        """Return the index that a process before this one has left in this incarnation.

        Without its past, nothing can be said of what it names: that is left, then, for the next incarnation.
        """
        try:
            if not self._has_lock() or not (self.own / imagefolder.INDEX).exists():
                return None
            if not has_past:
                self._set_aside()
                return None
        except OSError as error:  # then nothing can be written there, either
            log.error("cannot look into %s: %s", self.directory, error.strerror)  # noqa: TRY400 - the sentence says it all
            return None
        self.live[INDEX_SESSION] = _Shipment(self, INDEX_SESSION)
        return self.live[INDEX_SESSION]

    def _set_aside(self) -> None:
        for number in itertools.count(1):
            aside = self.directory / f"{self.own.name}.{number}"
            if not aside.exists():
                self.own.rename(aside)
                files.sync_folder(self.directory)
                return

    def indexes(self) -> list[str]:
        """Return what other incarnations have left, the newest first; KernelError."""
        try:
            found = [
                folder / imagefolder.INDEX
                for folder in self._foreign()
                if (folder / imagefolder.INDEX).exists()
            ]
            if found and not self._has_lock():
                log.error("another fdbox uses %s: what is there does not arrive", self.directory)
                return []
            found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        except OSError as error:
            raise imagefolder.failed("look into", self.directory, error) from error
        return [f"{INDEX_SESSION}@{path.parent.name}" for path in found]

    def tidy(self) -> None:
        """Remove boxes that no index names: they were not sealed yet when their kernel ended, or have arrived."""
        try:
            for folder in self._foreign() if self._has_lock() else ():
                if not (folder / imagefolder.INDEX).exists():
                    imagefolder.remove(folder, ".image", ".done", ".new")
        except OSError as error:
            log.warning("what nobody needs is still in %s: %s", self.directory, error)

    def receive(self, name: str) -> Delivery | None:
        """Return what another incarnation has left under a name.

        Raises:
            ManifestInvalid: it is damaged.
            KernelError: it cannot be read.
        """
        path = self._find(name)
        if path is None:
            return None
        try:
            return Delivery(files.open_direct(path, os.O_RDONLY), path)
        except OSError as error:
            raise imagefolder.failed("read", path, error) from error

    def resume(self, name: str, fd: OwnedFd) -> Delivery:
        """Return what a process before this one has received; the file may have gone meanwhile."""
        return Delivery(fd, self._find(name))

    def _foreign(self) -> list[Path]:
        """Return the folders of other incarnations."""
        own = self.own.name
        try:
            folders = [path for path in self.directory.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        return sorted(path for path in folders if path.name.partition(".")[0] != own)

    def _find(self, name: str) -> Path | None:
        session, _, incarnation = name.partition("@")
        if incarnation:
            candidates = [self.directory / incarnation / imagefolder.INDEX]
        else:
            ends = (".image", ".done")
            candidates = [folder / f"{session}{end}" for folder in self._foreign() for end in ends]
        return next((path for path in candidates if path.exists()), None)

    # --- for the shipments -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the folders; CannotCarry if they end with the kernel, or another process uses them, OSError."""
        why = imagefolder.obstacle(self.directory)
        if why is None:
            files.make_folder(self.directory)
            why = None if self._has_lock() else imagefolder.used_by_another(self.directory)
        if why is not None:
            raise CannotCarry(why.obstacle, remedy=why.remedy)
        files.make_folder(self.own)

    def path_of(self, name: str) -> Path:
        """Return where a shipment goes."""
        return self.own / (imagefolder.INDEX if name == INDEX_SESSION else f"{name}.image")

    def published(self) -> None:
        """Take note that an index is safe which can name what is live, or that there is none; let go of all else."""
        self._published = frozenset(self.live) if INDEX_SESSION in self.live else frozenset()
        kept = {self.path_of(name).name for name in self.live}
        with self._needless(), contextlib.suppress(FileNotFoundError):
            for path in self.own.iterdir():
                if path.name not in kept:
                    path.unlink()
            files.sync_folder(self.own)

    def dropped(self, name: str) -> None:
        """Let go of a shipment: at once if no index can name it, else when the next index is safe.

        OSError: an index is still there.
        """
        if name == INDEX_SESSION:
            self.path_of(name).unlink(missing_ok=True)
            files.sync_folder(self.own)
            del self.live[name]
            self.published()
            return
        del self.live[name]
        if name not in self._published:
            with self._needless():
                self.path_of(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _needless(self) -> Iterator[None]:
        """Say that something which no index names is still there: it takes room, and does no harm."""
        try:
            yield
        except OSError as error:
            log.warning("what nobody needs is still in %s: %s", self.own, error)


_NO_DEVICE = (
    "take it out of the box, or run a kernel with CONFIG_LIVEUPDATE and a driver that carries it"
)


class _Shipment:
    """What is written, or will be."""

    carrier: str = "image"

    def __init__(self, home: ImageCarrier, name: str, replacing: Shipment | None = None) -> None:
        self.name = name
        self._home = home
        self._replacing = replacing
        self._parcels: dict[int, Parcel] = {}
        self._chunks: dict[int, tuple[chunks.Chunk, ...]] = {}
        #: another shipment has taken this one's place
        self._is_over = False

    def add(self, parcels: Sequence[Parcel]) -> None:
        """Write the parcels, and make them safe.

        Raises:
            NoRoom: the file system has too little, or had.
            CannotCarry: what an index would name is gone.
            ParcelRefused: one is no file.
            KernelError: one cannot be read, or the file cannot be written.
        """
        path = self._home.path_of(self.name)
        try:
            self._home.prepare()
            if self.name == INDEX_SESSION:
                self._check_complete()
            else:
                _check_room(path.parent, parcels)
            self._chunks = _write(path, parcels)
        except OSError as error:
            raise imagefolder.failed("write", path, error) from error
        self._parcels = {parcel.token: parcel for parcel in parcels}
        self._home.live[self.name] = self
        if self.name == INDEX_SESSION:
            self._replace()
            self._home.published()

    def _check_complete(self) -> None:
        """Raise CannotCarry if somebody has removed an image."""
        for name in self._home.live:
            path = self._home.path_of(name)
            if name != INDEX_SESSION and not path.exists():
                raise CannotCarry(
                    f"somebody has removed {path}", remedy="unseal all boxes, and seal them again"
                )

    def _replace(self) -> None:
        if isinstance(self._replacing, _Shipment):
            self._replacing._is_over = True  # noqa: SLF001 - its own kind
        elif self._replacing is not None:
            self._replacing.discard()
        self._replacing = None

    def is_unchanged(self, token: int) -> bool:
        """Return whether the bytes of a parcel are those that were written."""
        return imagefile.is_unchanged(self._parcels[token], self._chunks[token])

    def discard(self) -> None:
        """Take the file away, as soon as nothing can name it; KernelError if an index is still there: it can be tried again."""
        if self._is_over or self._home.live.get(self.name) is not self:
            return
        try:
            self._home.dropped(self.name)
        except OSError as error:
            raise imagefolder.failed("remove", self._home.path_of(self.name), error) from error
        self._is_over = True

    def release(self) -> None:
        """Do nothing: it stays for the next incarnation."""


def _check_room(folder: Path, parcels: Sequence[Parcel]) -> None:
    wanted = imagefile.room_for(parcels)
    if wanted > (free := imagefolder.room(folder)):
        raise imagefolder.no_room(folder, wanted, free)


def _write(path: Path, parcels: Sequence[Parcel]) -> dict[int, tuple[chunks.Chunk, ...]]:
    for parcel in parcels:
        if not paths.is_regular(parcel.fd):
            raise ParcelRefused("it is no file: nothing of it can be written", parcel.token)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        with files.open_direct(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            made = imagefile.write(fd.fileno(), parcels)
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    files.sync_folder(path.parent)
    return made
