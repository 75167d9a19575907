"""`fdbox update --last`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fdbox.cli import render

if TYPE_CHECKING:
    import fdbox
    from fdbox.varlink import interface

_NANO = 1_000_000_000


def tell(client: fdbox.Client, *, as_json: bool) -> int:
    """Print how the last update went; return 0 if everything that left has arrived."""
    last = client.last_update()
    print(render.as_json(last) if as_json else _text(last))
    return 0 if last.arrived is not None and not last.missing else 1


def _text(last: interface.LastUpdateReply) -> str:
    lines = [_phases(last), ""]
    if last.failure is not None:
        return "\n".join([*lines, f"undone: {render.plain(last.failure)}"])
    lines += [_boxes(last), ""]
    left = sum(len(box.entries) for box in last.boxes)
    if last.arrived is None:
        return "\n".join([*lines, f"{left} entries are under way: the machine has not come back"])
    lines.append(f"{left - len(last.missing)} of {left} entries have arrived")
    lines += [
        f"missing  {render.plain(one.box)}/{render.plain(one.entry)} of user {one.owner}: {render.plain(one.reason)}"
        for one in last.missing
    ]
    return "\n".join(lines)


def _phases(last: interface.LastUpdateReply) -> str:
    """Return when each phase began, and how long it took."""
    begun = sorted(last.phases.items(), key=lambda pair: pair[1])
    if last.arrived is not None:
        begun.append(("arrived", last.arrived))
    rows = []
    for number, (phase, at) in enumerate(begun):
        until = begun[number + 1][1] if number + 1 < len(begun) else None
        took = "" if until is None else f"{(until - at) / _NANO:.3f} s"
        rows.append((phase, datetime.fromtimestamp(at / _NANO, UTC).isoformat(), took))
    return render.table(("PHASE", "BEGAN", "TOOK"), rows)


def _boxes(last: interface.LastUpdateReply) -> str:
    rows = [
        (str(box.owner), box.box, entry.name, entry.kind, entry.carrier, render.size(entry.bytes))
        for box in last.boxes
        for entry in box.entries
    ]
    return render.table(("USER", "BOX", "ENTRY", "KIND", "BY", "SIZE"), rows)
