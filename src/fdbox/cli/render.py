"""What people and programs get to read: tables, sizes, progress, JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def as_json(value: object) -> str:
    """Return one line of JSON, with the field names of the interface."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False)


def size(count: int | None) -> str:
    """Return bytes as people say them; "-" for what has none."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in _UNITS[:-1]:
        if amount < 1024:
            return f"{amount:.0f} {unit}" if amount == int(amount) else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} {_UNITS[-1]}"


def plain(text: str) -> str:
    """Return text without what a terminal would act on: names come from other users."""
    return "".join(char if char.isprintable() else "?" for char in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns of equal width, under their heads."""
    clean = [[plain(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in clean) for column in range(len(head))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in clean
    )
    return "\n".join(lines)


class Progress:
    """One line that is written over on a terminal; a line for each change elsewhere."""

    def __init__(self) -> None:
        self._last = ""
        self._live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Show what is going on now."""
        if text == self._last:
            return
        self._last = text
        if self._live:
            print(f"\r\x1b[K{plain(text)}", end="", file=sys.stderr, flush=True)
        else:
            print(plain(text), file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._live and self._last:
            print(file=sys.stderr, flush=True)
        self._last = ""
