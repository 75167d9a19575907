"""Would the next kernel take over what this one leaves? Each way in which it would not is one row of a table.

What happens when they do not fit was tried with patched images, and can be read in the source (7.3.4):

- KHO strings differ, or there is no KHO in the next kernel: a warning, it starts, everything is lost (kho_populate).
- LUO strings differ: luo_early_startup fails and the kernel **panics** (luo_restore_fail), whether or not anything was
  preserved, and also with `liveupdate=off`: that is looked at only later. Only where KHO is off it is not asked.
- The strings of a kind of file differ: it starts, and every open of /dev/liveupdate fails.
- Nothing is handed to the next kernel of a kernel that runs with LUO off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from fdbox.nextkernel import command_line
from fdbox.nextkernel.running import Running, Written

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdbox.nextkernel.inspect import KernelImage


class Effect(Enum):
    """What a problem leads to, the worst first."""

    PANICS = "the next kernel panics at boot, and everything in boxes is lost"
    REFUSED = "the running kernel will not load it"
    MAY_PANIC = "it may be that the next kernel panics at boot"
    LOST = "the next kernel starts, and everything in boxes is lost, unless it crosses as files"
    UNSURE = "it may be that everything in boxes is lost, unless it crosses as files"
    NOTE = "boxes cross, other things may not"


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why an update would not do what it is for."""

    what: str
    running: str  # the running kernel's side
    next: str  # the next kernel's side
    effect: Effect
    remedy: str

    @property
    def consequence(self) -> str:
        """What it leads to, as a sentence."""
        return self.effect.value

    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing.override is Python 3.12
        """Return it in one sentence, with both sides."""
        return f"{self.what}: the running kernel {self.running}, the next one {self.next}; {self.consequence}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What would become of boxes, and of the next kernel, if the update were done now."""

    problems: tuple[Problem, ...]  # the worst first

    @property
    def handover(self) -> bool:
        """Whether what boxes hold arrives by the kernel's way; what is not known counts as no."""
        return all(problem.effect is Effect.NOTE for problem in self.problems)

    @property
    def survives(self) -> bool | None:
        """Whether the next kernel starts; None: not known."""
        effects = {problem.effect for problem in self.problems}
        if effects & {Effect.PANICS, Effect.REFUSED}:
            return False
        return None if Effect.MAY_PANIC in effects else True


@dataclass(frozen=True, slots=True)
class Case:
    """What the rows of the table look at."""

    next: KernelImage
    running: Running
    kho_said: bool | None  # kho= on the next command line; None: nothing
    kho_on: bool | None  # and what follows from it; None: not known
    luo_said: bool | None


@dataclass(frozen=True, slots=True)
class _Rule:
    what: str
    applies: Callable[[Case], bool]
    running: Callable[[Case], str]
    next: Callable[[Case], str]
    effect: Effect
    remedy: str


def judge(image: KernelImage, running: Running, line: str) -> Verdict:
    """Return what becomes of boxes when `running` starts `image` with the command line `line`."""
    case = _case(image, _same_build(running, image), line)
    problems = [
        Problem(rule.what, rule.running(case), rule.next(case), rule.effect, rule.remedy)
        for rule in _RULES
        if rule.applies(case)
    ]
    order = list(Effect)
    return Verdict(tuple(sorted(problems, key=lambda problem: order.index(problem.effect))))


def by_files(verdict: Verdict, running: Running) -> str:
    """Return in a sentence how boxes cross where the kernel's way does not lead; empty if they do not, or need not."""
    if verdict.handover or verdict.survives is not True:
        return ""
    if running.liveupdate:
        return "boxes can still cross as files: fdbox update --carrier image"
    return "boxes can still cross as files: `fdbox update` chooses that here by itself"


def _same_build(running: Running, image: KernelImage) -> Running:
    """Fill in what is not known of the running kernel where the image is that very kernel: it writes what it accepts."""
    if running.banner != image.banner:
        return running

    def known(written: Written, strings: tuple[str, ...]) -> Written:
        same = Written(strings, f"{image.path}, which is the running kernel")
        return same if written.strings is None else written

    abi = image.abi
    return replace(
        running,
        kho=known(running.kho, abi.kho),
        luo=known(running.luo, abi.luo),
        memfd=known(running.memfd, abi.memfd),
        others=known(running.others, abi.others),
    )


def _case(image: KernelImage, running: Running, line: str) -> Case:
    line = command_line.effective(line, image.configuration)
    kho = command_line.switch(line, "kho")
    on = kho
    if kho is None and image.configuration is not None:
        on = image.configuration.has("KEXEC_HANDOVER_ENABLE_DEFAULT")
    return Case(image, running, kho, on, command_line.switch(line, "liveupdate"))


# --- the table -------------------------------------------------------------------------------------------------------


def _differ(written: Written, accepted: tuple[str, ...]) -> bool:
    return bool(written.strings and accepted) and not set(written.strings or ()) <= set(accepted)


def _unknown(written: Written, accepted: tuple[str, ...]) -> bool:
    return written.strings is None and bool(accepted)


def _reads_luo(case: Case) -> bool:
    """Return whether the next kernel looks at what LUO left, as far as is known: KHO is on, and understands it."""
    kho = case.running.kho
    return (
        bool(case.next.abi.kho) and case.kho_on is not False and not _differ(kho, case.next.abi.kho)
    )


def _not_built(running: Running) -> bool:
    """Return whether the running kernel is known to have no live update."""
    config = running.configuration
    return config is not None and not (config.has("KEXEC_HANDOVER") and config.has("LIVEUPDATE"))


def _hands(case: Case) -> str:
    if case.running.liveupdate:
        return "hands sessions over"
    if _not_built(case.running):
        return "is built without live update, and hands nothing over"
    return "has no live update (liveupdate=on), and hands nothing over"


def _writes(written: Written) -> str:
    if written.strings is None:
        return "does not show what it writes"
    return f"writes {' or '.join(written.strings) or 'nothing'} ({written.source})"


def _accepts(strings: tuple[str, ...]) -> str:
    return f"accepts {' or '.join(strings) or 'nothing'}"


_ANOTHER = "take a next kernel that accepts what the running one writes, or update by a reboot"
_BUILD = "take a kernel that is built with KEXEC_HANDOVER, LIVEUPDATE and LIVEUPDATE_MEMFD"
_TELL = (
    "run fdbox as root, without lockdown=confidentiality, and with CONFIG_PROC_KCORE or the running kernel's image "
    "in /boot; --force if you know that they fit"
)

_RULES = (
    _Rule(
        "format",
        lambda case: bool(case.next.obstacles),
        lambda _: "loads what it can start from anywhere in memory",
        lambda case: f"cannot be loaded so: {'; '.join(case.next.obstacles)}",
        Effect.REFUSED,
        "take a relocatable kernel in the format that this machine starts from",
    ),
    _Rule(
        "machine",
        lambda case: case.next.machine != case.running.machine,
        lambda case: f"is for {case.running.machine}",
        lambda case: f"is for {case.next.machine}",
        Effect.REFUSED,
        "take a kernel for this machine",
    ),
    _Rule(
        "signature",
        lambda case: bool(case.running.demands_signature) and not case.next.signed,
        lambda case: f"takes signed kernels only ({case.running.demands_signature})",
        lambda _: "is not signed",
        Effect.REFUSED,
        "sign the image with a key that the running kernel trusts (sbsign), or take the distribution's signed one",
    ),
    _Rule(
        "live update is off",
        lambda case: not case.running.liveupdate and _not_built(case.running),
        _hands,
        lambda _: "gets nothing",
        Effect.LOST,
        "run a kernel that is built with KEXEC_HANDOVER, LIVEUPDATE and LIVEUPDATE_MEMFD",
    ),
    _Rule(
        "live update is off",
        lambda case: not case.running.liveupdate and not _not_built(case.running),
        _hands,
        lambda _: "gets nothing",
        Effect.LOST,
        "boot the running kernel with kho=on liveupdate=on, if it is built for that",
    ),
    _Rule(
        "KEXEC_HANDOVER",
        lambda case: not case.next.abi.kho,
        lambda case: _writes(case.running.kho),
        lambda _: "is built without CONFIG_KEXEC_HANDOVER",
        Effect.LOST,
        _BUILD,
    ),
    _Rule(
        "KHO format",
        lambda case: _differ(case.running.kho, case.next.abi.kho),
        lambda case: _writes(case.running.kho),
        lambda case: _accepts(case.next.abi.kho),
        Effect.LOST,
        _ANOTHER,
    ),
    _Rule(
        "KHO format",
        lambda case: case.running.liveupdate and _unknown(case.running.kho, case.next.abi.kho),
        lambda case: _writes(case.running.kho),
        lambda case: _accepts(case.next.abi.kho),
        Effect.UNSURE,
        _TELL,
    ),
    _Rule(
        "LIVEUPDATE",
        lambda case: bool(case.next.abi.kho) and not case.next.abi.luo,
        lambda case: _writes(case.running.luo),
        lambda _: "is built without CONFIG_LIVEUPDATE",
        Effect.LOST,
        _BUILD,
    ),
    _Rule(
        "LUO format",
        lambda case: (
            case.running.liveupdate
            and _differ(case.running.luo, case.next.abi.luo)
            and _reads_luo(case)
        ),
        lambda case: _writes(case.running.luo),
        lambda case: _accepts(case.next.abi.luo),
        Effect.PANICS,
        f"{_ANOTHER}; kho=off on its command line makes it start, with nothing",
    ),
    _Rule(
        "LUO format",
        lambda case: (
            _differ(case.running.luo, case.next.abi.luo)
            and not (case.running.liveupdate and _reads_luo(case))
        ),
        lambda case: _writes(case.running.luo),
        lambda case: _accepts(case.next.abi.luo),
        Effect.LOST,
        _ANOTHER,
    ),
    _Rule(
        "LUO format",
        lambda case: (
            case.running.liveupdate
            and _unknown(case.running.luo, case.next.abi.luo)
            and _reads_luo(case)
        ),
        lambda case: _writes(case.running.luo),
        lambda case: _accepts(case.next.abi.luo),
        Effect.MAY_PANIC,
        _TELL,
    ),
    _Rule(
        "LIVEUPDATE_MEMFD",
        lambda case: bool(case.next.abi.luo) and not case.next.abi.memfd,
        lambda case: _writes(case.running.memfd),
        lambda _: "is built without CONFIG_LIVEUPDATE_MEMFD",
        Effect.LOST,
        _BUILD,
    ),
    _Rule(
        "memfd format",
        lambda case: _differ(case.running.memfd, case.next.abi.memfd),
        lambda case: _writes(case.running.memfd),
        lambda case: _accepts(case.next.abi.memfd),
        Effect.LOST,
        _ANOTHER,
    ),
    _Rule(
        "memfd format",
        lambda case: case.running.liveupdate and _unknown(case.running.memfd, case.next.abi.memfd),
        lambda case: _writes(case.running.memfd),
        lambda case: _accepts(case.next.abi.memfd),
        Effect.UNSURE,
        _TELL,
    ),
    _Rule(
        "other files' formats",
        lambda case: not set(case.running.others.strings or ()) <= set(case.next.abi.others),
        lambda case: _writes(case.running.others),
        lambda case: _accepts(case.next.abi.others),
        Effect.NOTE,
        "let boxes hold nothing that is carried in such a format: one that is not understood loses all",
    ),
    _Rule(
        "kho=off",
        lambda case: bool(case.next.abi.kho) and case.kho_said is False,
        _hands,
        lambda _: "has kho=off on its command line",
        Effect.LOST,
        "write kho=on instead",
    ),
    _Rule(
        "kho=on is missing",
        lambda case: bool(case.next.abi.kho) and case.kho_said is None and case.kho_on is False,
        _hands,
        lambda _: (
            "is built without CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT, and has no kho=on on its command line"
        ),
        Effect.LOST,
        "add kho=on to its command line",
    ),
    _Rule(
        "kho=on is missing",
        lambda case: bool(case.next.abi.kho) and case.kho_on is None,
        _hands,
        lambda _: "has no kho=on on its command line, and its configuration was not found",
        Effect.UNSURE,
        "add kho=on to its command line",
    ),
    _Rule(
        "liveupdate=off",
        lambda case: bool(case.next.abi.luo) and case.luo_said is False,
        _hands,
        lambda _: "has liveupdate=off on its command line",
        Effect.LOST,
        "write liveupdate=on instead",
    ),
    _Rule(
        "liveupdate=on is missing",
        lambda case: bool(case.next.abi.luo) and case.luo_said is None,
        _hands,
        lambda _: "has no liveupdate=on on its command line, and is off without it",
        Effect.LOST,
        "add liveupdate=on to its command line",
    ),
)
