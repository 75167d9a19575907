"""Whether the next kernel will do: what inspection found, seen with what is to be carried, and by what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.errors import NextKernelUnfit
from fdbox.nextkernel.verdict import Effect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fdbox.nextkernel.verdict import Problem, Verdict

#: what concerns those who carry nothing by the kernel: that there is a next one
_FOR_ALL = (Effect.PANICS, Effect.REFUSED, Effect.MAY_PANIC)


def obstacles(verdict: Verdict, *, by_kernel: bool) -> list[Problem]:
    """Return what stands in the way of an update, the worst first."""
    if by_kernel:
        return [problem for problem in verdict.problems if problem.effect is not Effect.NOTE]
    return [problem for problem in verdict.problems if problem.effect in _FOR_ALL]


def unfit(problems: Sequence[Problem], *, by_kernel: bool) -> NextKernelUnfit:
    """Return the error that names every obstacle, both sides of it, and what to do."""
    remedies = list(dict.fromkeys(problem.remedy for problem in problems))
    if by_kernel and not any(problem.effect in _FOR_ALL for problem in problems):
        remedies.append("or let everything cross as files (--carrier image)")
    if not any(problem.effect is Effect.REFUSED for problem in problems):
        remedies.append("or lose it (--force)")  # what is not loaded at all, nothing forces
    return NextKernelUnfit("; ".join(map(str, problems)), remedy="; ".join(remedies))
