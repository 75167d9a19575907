"""What the facts mean: one row of a table for each thing that decides whether an update would succeed.

There are three ways for boxes to cross, and each finding says which of them it blocks:

    kernel   a kexec, with the running kernel's Live Update Orchestrator
    image    a kexec, with files
    reboot   a reboot, with files
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fdbox.linux.privilege import CAPABILITIES
from fdbox.nextkernel.verdict import Effect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fdbox.service.doctor.facts import Facts

KERNEL, IMAGE, REBOOT = "kernel", "image", "reboot"
WAYS = (KERNEL, IMAGE, REBOOT)
KEXEC = (KERNEL, IMAGE)
FILES = (IMAGE, REBOOT)

#: what systemd needs for the unit: a store that outlives the service, and survival of the shutdown
_STORE_SINCE, _SURVIVAL_SINCE = 254, 255
_STORE_WANTED = 18000
_DESCRIPTORS_WANTED = 34816
#: seconds
_SLOW_BOOT = 1.0
_MEMORY_WANTED = 128 << 20


class Level(enum.Enum):
    """How bad it is; `UNKNOWN`: this process may not see it."""

    OK = "ok"
    WARNING = "warning"
    UNKNOWN = "unknown"
    OBSTACLE = "obstacle"


class Said(NamedTuple):
    """What a check says."""

    level: Level
    text: str
    remedy: str = ""
    #: the ways that an obstacle blocks
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has said."""

    check: str
    said: Said


def ok(text: str) -> Said:
    """Return that all is well."""
    return Said(Level.OK, text)


def warning(text: str, remedy: str) -> Said:
    """Return that something could be better."""
    return Said(Level.WARNING, text, remedy)


def unknown(text: str, remedy: str) -> Said:
    """Return that it cannot be seen."""
    return Said(Level.UNKNOWN, text, remedy)


def obstacle(text: str, remedy: str, blocks: tuple[str, ...]) -> Said:
    """Return that something stands in some ways."""
    return Said(Level.OBSTACLE, text, remedy, blocks)


def judge(facts: Facts) -> list[Finding]:
    """Return a finding for each check, in the order of the table."""
    return [Finding(name, check(facts)) for name, check in CHECKS.items()]


def ways(findings: Sequence[Finding]) -> list[str]:
    """Return the ways that nothing blocks, the best first."""
    blocked = {way for finding in findings for way in finding.said.blocks}
    return [way for way in WAYS if way not in blocked]


# --- the running kernel ----------------------------------------------------------------------------------------------

_BUILD = "run a kernel that is built with KEXEC_HANDOVER, LIVEUPDATE and LIVEUPDATE_MEMFD"


def kexec_file(facts: Facts) -> Said:
    """Whether the kernel can load another one in the way that hands over."""
    config = facts.running.configuration
    if facts.kexec_file:
        return ok("the kernel has kexec_file_load(2)")
    if facts.kexec_file is None and config is None:
        return unknown(
            "whether the kernel has kexec_file_load(2) is not to be seen",
            "run this as root, or install the kernel's config file in /boot",
        )
    if facts.kexec_file is False or (config is not None and not config.has("KEXEC_FILE")):
        return obstacle(
            "the running kernel has no kexec_file_load(2) (CONFIG_KEXEC_FILE)",
            "run one that has, or reboot",
            KEXEC,
        )
    return ok("the running kernel is built with CONFIG_KEXEC_FILE")


def handover(facts: Facts) -> Said:
    """Whether Kexec HandOver is on."""
    if facts.running.handover:
        return ok("Kexec HandOver is on")
    if facts.running.handover is None and facts.running.kho.strings != ():
        return unknown(
            "whether Kexec HandOver is on is not to be seen",
            "run this as root, with debugfs mounted",
        )
    config = facts.running.configuration
    if config is not None and config.has("KEXEC_HANDOVER"):
        return obstacle("Kexec HandOver is off", "boot with kho=on", (KERNEL,))
    return obstacle("the running kernel has no CONFIG_KEXEC_HANDOVER", _BUILD, (KERNEL,))


def live_update(facts: Facts) -> Said:
    """Whether the Live Update Orchestrator is on."""
    if facts.running.liveupdate:
        return ok("the Live Update Orchestrator is on (/dev/liveupdate)")
    config = facts.running.configuration
    if config is not None and config.has("LIVEUPDATE"):
        return obstacle(
            "the Live Update Orchestrator is off", "boot with kho=on liveupdate=on", (KERNEL,)
        )
    return obstacle("the running kernel has no Live Update Orchestrator", _BUILD, (KERNEL,))


def device(facts: Facts) -> Said:
    """Whether /dev/liveupdate takes memory, tried with a page of it."""
    if facts.kernel is None:
        if not facts.running.liveupdate:
            return ok("nothing to try: there is no /dev/liveupdate")
        return unknown("whether /dev/liveupdate takes memory was not tried", "run this as root")
    if facts.kernel.carrier is not None:
        return ok("/dev/liveupdate takes memory: tried with a page")
    return obstacle(facts.kernel.obstacle, facts.kernel.remedy, (KERNEL,))


def holders(facts: Facts) -> Said:
    """Who holds /dev/liveupdate: one process can."""
    if not facts.holders:
        return ok("nobody holds /dev/liveupdate")
    who = ", ".join(f"{name} (pid {pid})" for pid, name in facts.holders)
    return warning(f"/dev/liveupdate is held by {who}", "end it, unless it is a moment's work")


def load_disabled(facts: Facts) -> Said:
    """The sysctl kernel.kexec_load_disabled."""
    if facts.load_disabled:
        return obstacle(
            "kernel.kexec_load_disabled = 1: no kernel can be loaded before the next boot",
            "find who sets it (grep -r kexec_load_disabled /etc/sysctl.d /usr/lib/sysctl.d), and reboot",
            KEXEC,
        )
    if facts.load_disabled is None:
        return unknown(
            "there is no kernel.kexec_load_disabled", "run a kernel with kexec, and with /proc/sys"
        )
    return ok("kernel.kexec_load_disabled = 0")


def load_limit(facts: Facts) -> Said:
    """The sysctl kernel.kexec_load_limit_reboot: how often a kernel can still be loaded."""
    if facts.load_limit is None or facts.load_limit < 0:
        return ok("kernels can be loaded as often as wanted")
    left = f"kernel.kexec_load_limit_reboot = {facts.load_limit}"
    if facts.load_limit < 2:  # an update loads its kernel twice
        return obstacle(
            f"{left}: an update loads its kernel twice", "reboot: it cannot be raised", KEXEC
        )
    return warning(f"{left}: an update takes two of them", "do without dry runs")


def signature(facts: Facts) -> Said:
    """Lockdown, secure boot, and whether a signature is demanded."""
    lockdown, secure = facts.lockdown or "not there", facts.secure_boot
    state = f"lockdown: {lockdown}; secure boot: {'on' if secure else 'unknown' if secure is None else 'off'}"
    if not facts.running.demands_signature:
        return ok(f"unsigned kernels can be loaded ({state})")
    why = f"only signed kernels can be loaded ({facts.running.demands_signature}; {state})"
    if facts.next is None:
        return warning(why, "give a next kernel (--kernel) to have its signature looked at")
    if facts.next.image.signed:
        return ok(f"{why}, and the next one is signed")
    return obstacle(
        f"{why}, and {facts.next.image.path} is not",
        "take the distribution's signed image, or sign it (sbsign)",
        KEXEC,
    )


def scratch(facts: Facts) -> Said:
    """Whether the next kernel and its initrd fit into what KHO keeps free for them."""
    if not facts.running.handover:
        return ok("without Kexec HandOver the next kernel may lie anywhere")
    if facts.scratch is None:
        return unknown(
            "the size of the KHO scratch area is not to be seen",
            "run this as root, with CONFIG_KEXEC_HANDOVER_DEBUGFS",
        )
    largest = max(facts.scratch, default=0)
    room = f"the largest KHO scratch area has {largest >> 20} MiB"
    if facts.next is None:
        return ok(f"{room}; what a next kernel needs is looked at with --kernel")
    wanted = facts.next.image.memory + facts.next.initrd
    need = f"the next kernel and its initrd need {wanted >> 20} MiB"
    if wanted > sum(facts.scratch) or max(facts.next.image.memory, facts.next.initrd) > largest:
        return obstacle(
            f"{need}, and {room}",
            "boot with a larger kho_scratch=, or make the initrd smaller",
            (KERNEL,),
        )
    return ok(f"{need}; {room}")


# --- this process, and the machine -----------------------------------------------------------------------------------


def capabilities(facts: Facts) -> Said:
    """What the daemon has to be able to do; this process is taken for it."""
    if facts.capabilities is None:
        return unknown("the capabilities of this process are not to be seen", "mount /proc")
    missing = sorted(CAPABILITIES.keys() - facts.capabilities)
    if "CAP_SYS_BOOT" in missing:
        return obstacle(
            f"without {', '.join(missing)} no kernel can be loaded or started",
            "run fdbox, and this, as root",
            WAYS,
        )
    if missing:
        return warning(
            f"without {', '.join(missing)} not all of other users' entries can be made again",
            "run fdbox as root",
        )
    return ok(f"has {', '.join(sorted(CAPABILITIES))}")


def namespace(facts: Facts) -> Said:
    """Whether this is the machine itself, or a container."""
    if facts.in_initial_pid_namespace is None:
        return unknown("whether this is a container is not to be seen", "mount /proc")
    if not facts.in_initial_pid_namespace:
        return obstacle(
            "this is a container (a pid namespace): reboot(2) ends only that",
            "run fdbox on the machine itself",
            WAYS,
        )
    return ok("this is the machine's own pid namespace")


def descriptors(facts: Facts) -> Said:
    """How many descriptors the daemon could hold."""
    if facts.descriptors < _DESCRIPTORS_WANTED:
        return warning(
            f"RLIMIT_NOFILE is at most {facts.descriptors}",
            f"raise it to {_DESCRIPTORS_WANTED} for 16,384 entries (LimitNOFILE=, ulimit -n)",
        )
    return ok(f"RLIMIT_NOFILE is at most {facts.descriptors}")


def huge_pages(facts: Facts) -> Said:
    """Whether memory can be of huge pages, which make handing over cheap."""
    if facts.shmem_huge in ("always", "advise", "within_size", "force"):
        return ok(f"shmem takes huge pages ({facts.shmem_huge})")
    remedy = "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
    if facts.shmem_huge is None:
        return warning(
            "the kernel has no transparent huge pages for shmem",
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


def memory(facts: Facts) -> Said:
    """Whether there is memory left to seal with."""
    if facts.memory_free < _MEMORY_WANTED:
        return warning(
            f"{facts.memory_free >> 20} MiB of memory are free",
            "free some: what has to be copied may not fit",
        )
    return ok(f"{facts.memory_free >> 20} MiB of memory are free")


def systemd(facts: Facts) -> Said:
    """Whether systemd, if it is PID 1, lets fdbox live as long as it has to."""
    if facts.systemd is None:
        return ok("systemd is not PID 1: fdbox makes the jump itself")
    if facts.systemd < _STORE_SINCE:
        return warning(
            f"systemd {facts.systemd} lets go of stores when a service stops",
            f"use systemd {_SURVIVAL_SINCE}, or run fdbox outside of a unit",
        )
    if facts.systemd < _SURVIVAL_SINCE:
        return warning(
            f"systemd {facts.systemd} has no SurviveFinalKillSignal=",
            "fdbox as root is spared by its name all the same; better systemd 255",
        )
    return ok(f"systemd {facts.systemd}")


def unit(facts: Facts) -> Said:
    """Whether fdbox.service is there, and as it was shipped."""
    if facts.systemd is None:
        return ok("no unit is needed")
    if facts.unit.get("LoadState") != "loaded":
        return warning(
            "fdbox.service is not installed",
            "install systemd/fdbox.service in /etc/systemd/system, and enable it",
        )
    store = facts.unit.get("FileDescriptorStoreMax", "0")
    if (
        not store.isdecimal()
        or int(store) < _STORE_WANTED
        or facts.unit.get("FileDescriptorStorePreserve") != "yes"
    ):
        return warning(
            f"fdbox.service has FileDescriptorStoreMax={store}, FileDescriptorStorePreserve={facts.unit.get('FileDescriptorStorePreserve')}",
            f"set them to {_STORE_WANTED} and yes, as systemd/fdbox.service has them",
        )
    return ok("fdbox.service is there, with a store that outlives it")


def daemon(facts: Facts) -> Said:
    """Whether fdbox serves."""
    if facts.daemon is None:
        return warning("no fdbox answers here", "start it: fdbox serve, or systemctl start fdbox")
    status = facts.daemon.status
    return ok(f"fdbox {status.version} holds {status.entries} entries in {status.boxes} boxes")


# --- images ----------------------------------------------------------------------------------------------------------


def images(facts: Facts) -> Said:
    """Whether boxes can be written to files that outlive the kernel."""
    if facts.images.carrier is None:
        return obstacle(facts.images.obstacle, facts.images.remedy, FILES)
    return ok(f"images can be written to {facts.image_directory}")


def room(facts: Facts) -> Said:
    """Whether all that boxes hold would fit there."""
    if facts.images.carrier is None or facts.images_free is None:
        return ok("nothing to measure: no image can be written")
    held = 0 if facts.daemon is None else facts.daemon.held
    text = f"boxes hold {held >> 20} MiB, and {facts.image_directory} takes {facts.images_free >> 20} MiB"
    if held > facts.images_free:
        return obstacle(text, "free some, or name another folder: [image] directory", FILES)
    return ok(text)


# --- the next kernel -------------------------------------------------------------------------------------------------


def next_kernel(facts: Facts) -> Said:
    """What the next kernel would make of what this one leaves."""
    if facts.next is None:
        return unknown("no next kernel was looked at", "name one: --kernel IMAGE|VERSION")
    problems = [one for one in facts.next.problems if one.effect is not Effect.NOTE]
    fatal = [
        one for one in problems if one.effect in (Effect.PANICS, Effect.REFUSED, Effect.MAY_PANIC)
    ]
    name = f"{facts.next.image.path} ({facts.next.image.release})"
    if fatal:
        return obstacle(f"{name}: {fatal[0]}", fatal[0].remedy, KEXEC)
    if problems:
        return obstacle(f"{name}: {problems[0]}", problems[0].remedy, (KERNEL,))
    return ok(f"{name} takes over what this kernel hands over")


def scattered(facts: Facts) -> Said:
    """Whether memory lies so that the next kernel's boot becomes slow."""
    if facts.daemon is None or facts.daemon.prediction is None:
        return unknown(
            "how memory in boxes lies is not to be seen", "run this as root, with fdbox running"
        )
    cost = facts.daemon.prediction
    text = (
        f"memory in {cost.layout.runs} runs adds {cost.preserve_seconds:.1f} s to seal, {cost.boot_seconds:.1f} s to the "
        f"next kernel's boot, {cost.retrieve_seconds:.1f} s to arrive, where the kernel carries it"
    )
    if cost.boot_seconds > _SLOW_BOOT:
        return warning(text, "`fdbox predict` says which boxes; fdbox compact BOX")
    return ok(text)


#: in the order in which they are shown
CHECKS: dict[str, Callable[[Facts], Said]] = {
    "namespace": namespace,
    "capabilities": capabilities,
    "kexec-file": kexec_file,
    "kexec-load-disabled": load_disabled,
    "kexec-load-limit": load_limit,
    "signature": signature,
    "handover": handover,
    "live-update": live_update,
    "device": device,
    "holders": holders,
    "scratch": scratch,
    "next-kernel": next_kernel,
    "images": images,
    "image-room": room,
    "memory": memory,
    "scattered": scattered,
    "huge-pages": huge_pages,
    "memfd-noexec": memfd_noexec,
    "descriptors": descriptors,
    "daemon": daemon,
    "systemd": systemd,
    "unit": unit,
}
