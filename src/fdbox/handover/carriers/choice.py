"""The carrier of a machine: the kernel where that can be, images for the rest, box by box and entry by entry.

With a kernel that carries memory, everything goes by it but streams: copies for which there is no room in memory.
Without one, everything goes by images. What came is asked of both.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, ManifestInvalid
from fdbox.handover.manifest import INDEX_SESSION
from fdbox.linux import paths
from fdbox.model import Carriage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdbox.linux.fd import OwnedFd
    from fdbox.ports import Carrier, Delivery, Parcel, Shipment, Stream


class KernelAndImage:
    """Both carriers as one."""

    name = "kernel and image"
    in_place = True

    def __init__(self, kernel: Carrier[OwnedFd], image: Carrier[OwnedFd]) -> None:
        """Take both."""
        self.kernel = kernel
        self.image = image

    @property
    def streams(self) -> bool:
        """Whether there is a place for them."""
        return self.image.carriage().carrier is not None

    def now(self) -> Carrier[OwnedFd]:
        """Return this one if the kernel carries, else the image carrier."""
        return self if self.kernel.carriage().carrier is not None else self.image

    def by_image(self) -> Carrier[OwnedFd]:
        """Return the image carrier."""
        return self.image

    def close(self) -> None:
        """Close both."""
        self.kernel.close()
        self.image.close()

    def carriage(self) -> Carriage:
        """Return what there is, or why there is neither."""
        kernel = self.kernel.carriage()
        if kernel.carrier is not None:
            return kernel
        image = self.image.carriage()
        if image.carrier is not None:
            return image
        return Carriage(
            None, f"{kernel.obstacle}; and {image.obstacle}", f"{kernel.remedy}; or {image.remedy}"
        )

    def probe(self, fd: int, kind: str) -> Carriage:
        """Ask the kernel: no device goes into a file."""
        return self.kernel.probe(fd, kind)

    def ship(self, name: str, replacing: Shipment | None = None) -> Shipment:
        """Begin a shipment by both; for `now` has chosen this one."""
        return _Shipment(self.kernel.ship(name, replacing), self.image)

    def claim(self, *, has_past: bool) -> Shipment | None:
        """Ask the image carrier: of the kernel's nothing is left."""
        return self.image.claim(has_past=has_past)

    def indexes(self) -> Sequence[str]:
        """Return those of both; images are from before what the kernel brings, which crosses one jump only."""
        return [*self.kernel.indexes(), *self.image.indexes()]

    def tidy(self) -> None:
        """Tidy both."""
        self.kernel.tidy()
        self.image.tidy()

    def receive(self, name: str) -> Delivery[OwnedFd] | None:
        """Ask both."""
        image = self.image.receive(name)
        kernel = None if name.startswith(f"{INDEX_SESSION}@") else self.kernel.receive(name)
        if kernel is None or image is None:
            return kernel or image
        return _Delivery(kernel, image)

    def resume(self, name: str, fd: OwnedFd) -> Delivery[OwnedFd]:
        """Return what hangs on an image, or on a session and perhaps on an image, too."""
        if paths.is_regular(fd.fileno()):
            return self.image.resume(name, fd)
        kernel, image = self.kernel.resume(name, fd), self.image.receive(name)
        return kernel if image is None else _Delivery(kernel, image)


class _Shipment:
    """What goes by the kernel, and its streams, which go by an image of the same name."""

    def __init__(self, kernel: Shipment, image: Carrier[OwnedFd]) -> None:
        self._kernel = kernel
        self._by_image = image
        self._image: Shipment | None = None

    @property
    def name(self) -> str:
        """The name that both have."""
        return self._kernel.name

    @property
    def carrier(self) -> str:
        """What takes all but streams."""
        return self._kernel.carrier

    def add(self, parcels: Sequence[Parcel]) -> None:
        """Send each by its way; the kernel last, for that is quick."""
        streams = [parcel for parcel in parcels if parcel.extents is not None]
        if streams:
            self._image = self._by_image.ship(self.name)
            self._image.add(streams)
        self._kernel.add([parcel for parcel in parcels if parcel.extents is None])

    def is_unchanged(self, token: int) -> bool:
        """Ask the image."""
        assert self._image is not None, "there was a stream"
        return self._image.is_unchanged(token)

    def discard(self) -> None:
        """Discard both."""
        self._kernel.discard()
        if self._image is not None:
            self._image.discard()

    def release(self) -> None:
        """Discard both: what went by the kernel ends with this process, and the streams are nothing without it."""
        self.discard()


class _Delivery:
    """What the kernel has brought, and the streams that go with it."""

    def __init__(self, kernel: Delivery[OwnedFd], image: Delivery[OwnedFd]) -> None:
        self._kernel = kernel
        self._image = image

    def fileno(self) -> int:
        """Return the session's descriptor: the image is a file, and stays."""
        return self._kernel.fileno()

    def take(self, token: int) -> OwnedFd:
        """Take it from the kernel."""
        return self._kernel.take(token)

    def stream(self, token: int) -> Stream | None:
        """Return the image's stream, if it has one under this token. A damaged image takes nothing of the kernel's with it."""
        try:
            return self._image.stream(token)
        except ManifestInvalid:
            with suppress(FdboxError):
                self._kernel.take(token).close()
                return None
            raise

    def finish(self, *, whole: bool = True) -> None:
        """Finish both."""
        self._image.finish(whole=whole)
        self._kernel.finish(whole=whole)

    def abandon(self) -> None:
        """Abandon both."""
        self._image.abandon()
        self._kernel.abandon()
