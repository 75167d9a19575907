"""What only the kernel can carry: state of devices, frozen in place. It is handed over as it is, if the running kernel takes it.

    / { compatible = "fdbox,<kind>-v1"; file@0 { token; }; };      the parcel is the descriptor itself

Which of them a kernel takes changes from release to release, so each is tried with a real preserve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fdbox.kinds.base import Kind, Ordinary
from fdbox.model import Carriage

if TYPE_CHECKING:
    from fdbox.fdt.tree import Node
    from fdbox.kinds.freight import Arrivals, Freight, Made
    from fdbox.kinds.look import Look, OpenFile
    from fdbox.linux.fd import OwnedFd
    from fdbox.ports import Carrier

_UNSEEN = Carriage(None, "it was not looked at", "put it into the box again")


class Handed(Ordinary):
    """A kind that the kernel has to carry by itself."""

    keeps = "all of it, where the running kernel takes it, which is tried; it is refused where not"
    #: how what /proc/self/fd/N points to begins
    links: ClassVar[tuple[str, ...]]

    def recognise(self, seen: Look) -> bool:
        """Return whether it is one."""
        return seen.link.startswith(self.links) and not seen.is_path

    def carriage(self, seen: Look | None, carrier: Carrier[OwnedFd]) -> Carriage:
        """Return what the kernel says to it."""
        return _UNSEEN if seen is None else carrier.probe(seen.fd, self.name)

    def write(self, file: OpenFile, node: Node, freight: Freight) -> None:
        """Hand it over."""
        node.set_u64("token", freight.lend(file.fd, file.entry))

    def same(self, file: OpenFile, saved: Node, freight: Freight) -> bool:
        """Return True: the kernel itself sees to it."""
        return True

    def read(self, node: Node, arrivals: Arrivals) -> Made | OwnedFd:
        """Return it, from the kernel."""
        return arrivals.take(node.u64("token"))


class Vfio(Handed):
    """VFIO: drivers/vfio/."""

    name = "vfio"
    about = "a device for user space, its group or its container"
    compatible = "fdbox,vfio-v1"
    links: ClassVar[tuple[str, ...]] = ("/dev/vfio/", "anon_inode:[vfio-device]")


class Iommufd(Handed):
    """IOMMUFD: drivers/iommu/iommufd/."""

    name = "iommufd"
    about = "an IOMMU's address spaces"
    compatible = "fdbox,iommufd-v1"
    links: ClassVar[tuple[str, ...]] = ("/dev/iommu",)


class Kvm(Handed):
    """KVM: virt/kvm/kvm_main.c."""

    name = "kvm"
    about = "a virtual machine, or one of its processors"
    compatible = "fdbox,kvm-v1"
    links: ClassVar[tuple[str, ...]] = ("/dev/kvm", "anon_inode:kvm-")


class GuestMemfd(Handed):
    """guest_memfd: virt/kvm/guest_memfd.c."""

    name = "guest-memfd"
    about = "private memory of a virtual machine"
    compatible = "fdbox,guest-memfd-v1"
    links: ClassVar[tuple[str, ...]] = ("/[kvm-gmem]",)


class LuoSession(Handed):
    """A session of the Live Update Orchestrator: kernel/liveupdate/luo_session.c."""

    name = "luo-session"
    about = "a session of the Live Update Orchestrator"
    compatible = "fdbox,luo-session-v1"
    links: ClassVar[tuple[str, ...]] = ("anon_inode:[luo_session]",)


KINDS: tuple[Kind, ...] = (Vfio(), Iommufd(), Kvm(), GuestMemfd(), LuoSession())
