"""What no next kernel can hold: it stands for something that ends with this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.kinds.base import Kind, Uncarried, anonymous

if TYPE_CHECKING:
    from fdbox.kinds.look import Look


def _is_pidfd(seen: Look) -> bool:
    return anonymous("pidfd")(seen) or seen.link.startswith("pidfd:")


def _is_bpf(seen: Look) -> bool:
    return seen.link.removeprefix("anon_inode:").startswith(("bpf-", "bpf_", "btf", "/bpf-token"))


KINDS: tuple[Kind, ...] = (
    Uncarried("pidfd", "a process", _is_pidfd, "no process outlives its kernel"),
    Uncarried(
        "io-uring",
        "submission and completion queues",
        anonymous("io_uring"),
        "its queues are shared with a process, which does not outlive its kernel",
    ),
    Uncarried(
        "bpf",
        "a BPF program, map, link, token or type information",
        _is_bpf,
        "it was verified against this kernel, and refers to its functions and addresses",
        "load it again in the next kernel",
    ),
    Uncarried(
        "perf-event",
        "a performance counter",
        anonymous("perf_event"),
        "it counts what this kernel does",
        "open it again in the next kernel",
    ),
    Uncarried(
        "userfaultfd",
        "page faults of a process",
        anonymous("userfaultfd"),
        "it belongs to the address space of a process, which does not outlive its kernel",
    ),
    Uncarried(
        "secretmem",
        "memory that the kernel itself has no mapping of",
        lambda seen: seen.link.startswith("/secretmem"),
        "nobody may read it but who has it mapped, and so nobody can save it",
        "keep the secret where the next kernel can ask for it again",
    ),
)
