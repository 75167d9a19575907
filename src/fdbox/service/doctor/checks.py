"""The table: one row for each thing that decides whether an update would succeed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdbox.service.doctor import kernel, memory, process
from fdbox.service.doctor.said import WAYS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fdbox.service.doctor.facts import Facts
    from fdbox.service.doctor.said import Said

#: in the order in which they are shown
CHECKS: dict[str, Callable[[Facts], Said]] = {
    "proc": process.proc,
    "namespace": process.namespace,
    "capabilities": process.capabilities,
    "configuration": process.configuration,
    "kexec-file": kernel.kexec_file,
    "kexec-load-disabled": kernel.load_disabled,
    "kexec-load-limit": kernel.load_limit,
    "signature": kernel.signature,
    "handover": kernel.handover,
    "live-update": kernel.live_update,
    "device": kernel.device,
    "holders": kernel.holders,
    "scratch": kernel.scratch,
    "next-kernel": kernel.next_kernel,
    "images": memory.images,
    "image-room": memory.room,
    "memory": memory.memory,
    "scattered": memory.scattered,
    "huge-pages": memory.huge_pages,
    "memfd-noexec": memory.memfd_noexec,
    "clock": memory.clock,
    "kcmp": process.kcmp,
    "descriptors": process.descriptors,
    "daemon": process.daemon,
    "systemd": process.systemd,
    "unit": process.unit,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has said."""

    check: str
    said: Said


def judge(facts: Facts) -> list[Finding]:
    """Return a finding for each check, in the order of the table."""
    return [Finding(name, check(facts)) for name, check in CHECKS.items()]


def ways(findings: Sequence[Finding]) -> list[str]:
    """Return the ways that nothing blocks, the best first."""
    blocked = {way for finding in findings for way in finding.said.blocks}
    return [way for way in WAYS if way not in blocked]
