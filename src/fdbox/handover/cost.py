"""What a live update will cost, predicted from how memory lies.

Three things take time, each by its own measure (kernel.md, mm/memblock.c, kernel/liveupdate/):

    preserve   by the folio, and by the page that has to be moved away first: from where the next kernel starts
    boot       by the folios times the physical runs: each folio becomes an early reservation, in an array that has an
               item for each run, and is searched and kept sorted
    retrieve   by the folio: a huge page costs little more than a small one

How long that is depends on the machine. All of it is the processor going through lists, which is what an interpreter
does, too: so the costs are stated in turns of a loop (`turn_seconds`), measured once in our VM (benchmarks/blackout.py
measures again, and compares), and a turn is measured where the prediction is made.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fdbox.linux.layout import Layout
    from fdbox.ports import Clock

#: turns of a loop; see benchmarks/blackout.py
PRESERVE_FOLIO, MOVE_PAGE = 4.5, 46.0
RETRIEVE_FOLIO = 7.5
BOOT_FOLIO_RUN, BOOT_RUN_RUN = 0.018, 0.014
_TURNS = 200_000
_TRIES = 5


class Cost(NamedTuple):
    """Seconds."""

    preserve: float
    boot: float
    retrieve: float

    @property
    def blackout(self) -> float:
        """What comes on top of a handover of nothing."""
        return self.preserve + self.boot + self.retrieve


def predict(layout: Layout, turn: float) -> Cost:
    """Return what handing memory over will cost; where runs are hidden, every folio is taken for one.

    Args:
        layout: Of all that is handed over together: the product is of the whole.
        turn: Seconds, from `turn_seconds`.
    """
    runs = layout.folios if layout.runs is None else layout.runs
    return Cost(
        preserve=(PRESERVE_FOLIO * layout.folios + MOVE_PAGE * layout.movable) * turn,
        boot=(BOOT_FOLIO_RUN * layout.folios + BOOT_RUN_RUN * runs) * runs * turn,
        retrieve=RETRIEVE_FOLIO * layout.folios * turn,
    )


def turn_seconds(clock: Clock = time.perf_counter) -> float:
    """Return how long one turn of a loop takes here, undisturbed: the quickest of some tries."""
    quickest = float("inf")
    for _ in range(_TRIES):
        begun = clock()
        total = 0
        for number in range(_TURNS):
            total += number & 7
        quickest = min(quickest, clock() - begun)
    return quickest / _TURNS
