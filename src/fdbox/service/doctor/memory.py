"""Checks of memory, of the files that images are, and of the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.handover.carriers.imagefolder import RESERVE
from fdbox.linux.layout import PAGE
from fdbox.service.doctor.said import FILES, Said, obstacle, ok, unknown, warning

if TYPE_CHECKING:
    from fdbox.service.doctor.facts import Facts

_SLOW_BOOT_SECONDS = 1.0
_MEMORY_WANTED = 128 << 20
_CLOCK_SECONDS = 2
_ANOTHER = "name another folder: [image] directory"


def images(facts: Facts) -> Said:
    """Whether boxes can be written to files that outlive the kernel."""
    directory = facts.asked.image_directory
    if facts.images is None:
        return unknown(
            f"whether fdbox can write images to {directory} is not to be seen",
            "run this as root, or as the user as whom fdbox runs",
        )
    if facts.images.carrier is None:
        return obstacle(facts.images.obstacle, facts.images.remedy, FILES)
    if facts.images_may_be_in_memory:
        return unknown(
            f"whether {directory} outlives the kernel is not to be seen: it is in an overlay, and what that writes to "
            "is elsewhere",
            f"{_ANOTHER}, on a disk",
        )
    return ok(f"images can be written to {directory}")


def room(facts: Facts) -> Said:
    """Whether the memory that boxes hold would fit there."""
    if facts.images is None:
        return unknown(
            "how much room there is for images is not to be seen",
            "run this as root, or as the user as whom fdbox runs",
        )
    if facts.images.carrier is None or facts.images_free is None:
        return ok("nothing to measure: no image can be written")
    free = max(0, facts.images_free - RESERVE)
    takes = f"{facts.asked.image_directory} takes {free >> 20} MiB"
    daemon = facts.asked.daemon
    if daemon is None:
        return ok(f"nothing is held, and {takes}")
    if daemon.prediction is None:
        return unknown(
            f"how much memory boxes hold is not to be seen; {takes}",
            "run this as root, with fdbox running",
        )
    # Not the sizes of entries: they count holes, and what two entries share twice.
    held = daemon.prediction.layout.pages * PAGE
    text = f"boxes hold {held >> 20} MiB of memory, and {takes}"
    if held > free:
        return obstacle(text, f"free some, or {_ANOTHER}", FILES)
    return ok(text)


def memory(facts: Facts) -> Said:
    """Whether there is memory left to seal with."""
    if facts.memory_free is None:
        return unknown("how much memory is free is not to be seen", "mount /proc")
    if facts.memory_free < _MEMORY_WANTED:
        return warning(
            f"{facts.memory_free >> 20} MiB of memory are free",
            "free some: what has to be copied may not fit",
        )
    return ok(f"{facts.memory_free >> 20} MiB of memory are free")


def scattered(facts: Facts) -> Said:
    """Whether memory lies so that the next kernel's boot becomes slow."""
    daemon = facts.asked.daemon
    if daemon is None or daemon.prediction is None:
        return unknown(
            "how memory in boxes lies is not to be seen", "run this as root, with fdbox running"
        )
    cost = daemon.prediction
    runs = cost.layout.runs
    lies = "runs that fdbox may not see" if runs is None else f"{runs} runs"
    text = (
        f"memory in {lies} adds {cost.preserve_seconds:.1f} s to seal, {cost.boot_seconds:.1f} s to the "
        f"next kernel's boot, {cost.retrieve_seconds:.1f} s to arrive, where the kernel carries it"
    )
    if cost.boot_seconds > _SLOW_BOOT_SECONDS:
        return warning(text, "`fdbox predict` says which boxes; fdbox compact BOX")
    return ok(text)


def huge_pages(facts: Facts) -> Said:
    """Whether memory can be of huge pages, which make handing over cheap."""
    if facts.shmem_huge in ("always", "advise", "within_size", "force"):
        return ok(f"shmem takes huge pages ({facts.shmem_huge})")
    remedy = "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
    if facts.shmem_huge is None:
        return warning(
            "the kernel shows no transparent huge pages for shmem",
            "run one with CONFIG_TRANSPARENT_HUGEPAGE",
        )
    return warning(
        f"memory is of small pages (shmem_enabled is {facts.shmem_huge}): handing over takes longer",
        remedy,
    )


def memfd_noexec(facts: Facts) -> Said:
    """The sysctl vm.memfd_noexec: what it seals, the kernel brings back read-only, so it is copied."""
    if facts.memfd_noexec:
        return warning(
            f"vm.memfd_noexec = {facts.memfd_noexec}: memfds that programs make without MFD_EXEC are copied, not carried in place",
            "sysctl vm.memfd_noexec=0, or have them made with MFD_EXEC",
        )
    return ok("vm.memfd_noexec = 0")


def clock(facts: Facts) -> Said:
    """Whether the next kernel will know the time: it reads the hardware's clock, and timers go on by it."""
    if facts.clock_error is None:
        return unknown(
            "no hardware clock is to be seen (/sys/class/rtc): what time the next kernel starts with depends on the platform",
            "let it set its clock before fdbox starts there (chrony, systemd-timesyncd)",
        )
    if abs(facts.clock_error) > _CLOCK_SECONDS:
        return warning(
            f"the hardware's clock is {abs(facts.clock_error)} s {'ahead' if facts.clock_error > 0 else 'behind'}: timers "
            "would be off by that",
            "hwclock --systohc --utc",
        )
    return ok("the hardware's clock, which the next kernel starts with, is right")
