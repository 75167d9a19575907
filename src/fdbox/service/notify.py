"""What a program says of itself by sd_notify(3), sans-IO: assignments in, what is to be done out.

A program begins as *starting*; where it stands is told, and nothing is refused to it for that: READY=1 may come twice, or
never. A word that does not fit (RELOADING=1 of a program that is stopping) changes nothing.

    STARTING -READY=1-> READY -RELOADING=1-> RELOADING -READY=1-> READY -STOPPING=1-> STOPPING
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Phase(enum.Enum):
    """Where a program says it stands."""

    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"


#: assignment -> phase -> phase. What is not here changes nothing.
TRANSITIONS: dict[str, dict[Phase, Phase]] = {
    "READY": {phase: Phase.READY for phase in Phase if phase is not Phase.STOPPING},
    "RELOADING": {Phase.STARTING: Phase.RELOADING, Phase.READY: Phase.RELOADING},
    "STOPPING": dict.fromkeys(Phase, Phase.STOPPING),
}

_INFINITE = (1 << 64) - 1  # USEC_INFINITY
_DIGITS = 20  # of a 64-bit number

#: What our own manager is told, too.
PASSED_ON = ("READY", "RELOADING", "STOPPING", "STATUS", "MONOTONIC_USEC")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a message asks its supervisor to do: watch another process, end the program as one that hangs."""

    main_pid: int | None = None
    abort: bool = False


@dataclass(slots=True)
class Program:
    """One life of a program."""

    phase: Phase = Phase.STARTING
    status: str = ""
    #: seconds within which WATCHDOG=1 has to come again; None: it need not
    watchdog: float | None = None
    _heard_at: float = 0.0

    def hear(self, fields: Mapping[str, str], now: float) -> Wish:
        """Take a message that came at `now`, in monotonic seconds."""
        for word, moves in TRANSITIONS.items():
            if fields.get(word) == "1":
                self.phase = moves.get(self.phase, self.phase)
        self.status = fields.get("STATUS", self.status)
        if (interval := _number(fields.get("WATCHDOG_USEC"))) is not None:
            self.watchdog = interval / 1e6 if 0 < interval < _INFINITE else None
            self._heard_at = now
        if fields.get("WATCHDOG") == "1":
            self._heard_at = now
        return Wish(_number(fields.get("MAINPID")), fields.get("WATCHDOG") == "trigger")

    @property
    def deadline(self) -> float | None:
        """When it has to be heard of again, in monotonic seconds."""
        return None if self.watchdog is None else self._heard_at + self.watchdog


def _number(text: str | None) -> int | None:
    if not text or not text.isascii() or not text.isdecimal() or len(text) > _DIGITS:
        return None
    return int(text)
