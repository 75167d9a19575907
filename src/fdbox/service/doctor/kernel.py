"""Checks of the running kernel, and of the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.nextkernel.verdict import Effect, Verdict, by_files
from fdbox.service.doctor.said import KERNEL, KEXEC, Said, obstacle, ok, unknown, warning

if TYPE_CHECKING:
    from fdbox.service.doctor.facts import Facts

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


def load_disabled(facts: Facts) -> Said:
    """The sysctl kernel.kexec_load_disabled."""
    if facts.load_disabled:
        return obstacle(
            "kernel.kexec_load_disabled = 1: no kernel can be loaded before the next boot",
            "find who sets it (grep -r kexec_load_disabled /etc/sysctl.d /usr/lib/sysctl.d), and reboot",
            KEXEC,
        )
    if facts.load_disabled == 0:
        return ok("kernel.kexec_load_disabled = 0")
    if facts.kexec_file is False:
        return ok("nothing to disable: the kernel has no kexec")
    return unknown(
        "there is no kernel.kexec_load_disabled", "run a kernel with kexec, and mount /proc"
    )


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
    """Lockdown, secure boot, IMA, and whether a signature is demanded."""
    lockdown, secure = facts.lockdown or "not seen", facts.secure_boot
    state = f"lockdown: {lockdown}; secure boot: {'on' if secure else 'not seen' if secure is None else 'off'}"
    demand = facts.running.demands_signature
    if demand and facts.next is not None and not facts.next.image.signed:
        return obstacle(
            f"only signed kernels can be loaded ({demand}; {state}), and {facts.next.image.path} is not",
            "take the distribution's signed image, or sign it (sbsign)",
            KEXEC,
        )
    if facts.appraised:
        return warning(
            f"IMA looks at the signatures of kernels ({facts.appraised}; {state})",
            "let the next kernel have one: evmctl ima_sign --key KEY IMAGE",
        )
    if demand and facts.next is None:
        return warning(
            f"only signed kernels can be loaded ({demand}; {state})",
            "give a next kernel (--kernel) to have its signature looked at",
        )
    if demand:
        return ok(f"only signed kernels can be loaded ({demand}; {state}), and the next one is")
    if _may_be_locked(facts):
        return unknown(
            f"whether the kernel is locked down is not to be seen ({state})",
            "mount -t securityfs securityfs /sys/kernel/security",
        )
    return ok(f"unsigned kernels can be loaded ({state})")


def _may_be_locked(facts: Facts) -> bool:
    """Return whether there may be a lockdown that is not shown, and that would count."""
    config = facts.running.configuration
    if facts.lockdown is not None or facts.kexec_file is False:
        return False
    return config is None or (config.has("SECURITY_LOCKDOWN_LSM") and config.has("KEXEC_SIG"))


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
    if config is None or not config.has("KEXEC_HANDOVER"):
        return obstacle("the running kernel has no CONFIG_KEXEC_HANDOVER", _BUILD, (KERNEL,))
    if facts.kho_said is False:
        text, remedy = "kho=off is on the command line", "boot without it, with kho=on"
    elif facts.kho_said:
        text = "kho=on is on the command line, and the kernel could not set it up"
        remedy = "see why: dmesg | grep KHO; mostly a smaller kho_scratch= helps"
    else:
        text, remedy = "kho=on is not on the command line", "boot with kho=on"
    return obstacle(f"Kexec HandOver is off: {text}", remedy, (KERNEL,))


def live_update(facts: Facts) -> Said:
    """Whether the Live Update Orchestrator is on."""
    if facts.running.liveupdate:
        return ok("the Live Update Orchestrator is on (/dev/liveupdate)")
    config = facts.running.configuration
    if config is None or not config.has("LIVEUPDATE"):
        return obstacle("the running kernel has no Live Update Orchestrator", _BUILD, (KERNEL,))
    if not facts.luo_said:
        text = "liveupdate=on is not on the command line"
    else:
        text = "liveupdate=on is on the command line, and Kexec HandOver is not on"
    return obstacle(
        f"the Live Update Orchestrator is off: {text}", "boot with kho=on liveupdate=on", (KERNEL,)
    )


def device(facts: Facts) -> Said:
    """Whether /dev/liveupdate takes memory, tried with a page of it."""
    if not facts.running.liveupdate:
        return ok("nothing to try: there is no /dev/liveupdate")
    if facts.kernel is not None:
        if facts.kernel.carrier is not None:
            return ok("/dev/liveupdate takes memory: tried with a page")
        return obstacle(facts.kernel.obstacle, facts.kernel.remedy, (KERNEL,))
    daemon = facts.asked.daemon
    if daemon is not None and daemon.status.carrier == KERNEL:
        return ok("/dev/liveupdate takes memory: fdbox has tried")
    return unknown("whether /dev/liveupdate takes memory was not tried", "run this as root")


def holders(facts: Facts) -> Said:
    """Who holds /dev/liveupdate: one process can."""
    if not facts.running.liveupdate:
        return ok("nothing to hold: there is no /dev/liveupdate")
    if facts.holders is None:
        return unknown("who holds /dev/liveupdate is not to be seen", "run this as root")
    if not facts.holders:
        return ok("nobody holds /dev/liveupdate")
    who = ", ".join(f"{name} (pid {pid})" for pid, name in facts.holders)
    return warning(f"/dev/liveupdate is held by {who}", "end it, unless it is a moment's work")


def scratch(facts: Facts) -> Said:
    """Whether the next kernel and its initrd fit into what KHO keeps free for them."""
    if facts.running.handover is False:
        return ok("without Kexec HandOver the next kernel may lie anywhere")
    if facts.scratch is None:
        return unknown(
            "the size of the KHO scratch area is not to be seen",
            "run this as root, with CONFIG_KEXEC_HANDOVER_DEBUGFS, and debugfs mounted",
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


def next_kernel(facts: Facts) -> Said:
    """What the next kernel would make of what this one leaves."""
    if facts.next is None:
        why = facts.asked.not_chosen or "none is installed"
        return unknown(f"no next kernel was looked at: {why}", "name one: --kernel IMAGE|VERSION")
    problems = [one for one in facts.next.problems if one.effect is not Effect.NOTE]
    fatal = [
        one for one in problems if one.effect in (Effect.PANICS, Effect.REFUSED, Effect.MAY_PANIC)
    ]
    name = f"{facts.next.image.path} ({facts.next.image.release})"
    if fatal:
        return obstacle(f"{name}: {fatal[0]}", fatal[0].remedy, KEXEC)
    if problems:
        otherwise = by_files(Verdict(facts.next.problems), facts.running)
        return obstacle(f"{name}: {problems[0]}", f"{problems[0].remedy}; {otherwise}", (KERNEL,))
    return ok(f"{name} takes over what this kernel hands over")
