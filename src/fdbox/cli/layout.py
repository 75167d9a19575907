"""`fdbox predict` and `fdbox compact`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.cli import render
from fdbox.cli.command import (
    box_arguments,
    command,
    connect,
    existing_box,
    json_argument,
    socket_argument,
)

if TYPE_CHECKING:
    import argparse

    from fdbox.varlink import interface

_PAGE = 4096


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)


@command(
    "predict",
    "Tell how the memory in boxes lies, and what that adds to a live update by the kernel, in seconds.",
    example="fdbox predict",
    arguments=_predict_arguments,
)
def predict(options: argparse.Namespace) -> None:
    """Predict."""
    with connect(options) as client:
        found = client.predict()
    print(render.as_json(found) if options.json else costs(found))


def costs(found: interface.PredictReply) -> str:
    """Return a table, box by box."""
    rows = [_row(str(one.owner), one.box, one) for one in found.boxes]
    head = ("USER", "BOX", "SIZE", "PAGES", "HUGE", "RUNS", "PRESERVE", "BOOT", "RETRIEVE")
    return render.table(head, [*rows, _row("", "together", found.total)])


def _row(owner: str, box: str, one: interface.Prediction) -> tuple[str, ...]:
    lies = one.layout
    seconds = (one.preserve_seconds, one.boot_seconds, one.retrieve_seconds)
    return (
        owner,
        box,
        render.size(lies.pages * _PAGE),
        str(lies.pages),
        str(lies.huge_pages),
        _runs(lies),
        *(f"{number:.2f} s" for number in seconds),
    )


def _runs(lies: interface.Layout) -> str:
    return "not known" if lies.runs is None else str(lies.runs)


def _compact_arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)
    box_arguments(parser)


@command(
    "compact",
    "Put the memory in a box together into huge pages, in place: same descriptors, same bytes, and who has it mapped\n"
    "sees no change. Scattered memory makes the next kernel's boot slow.",
    example="fdbox compact cache",
    arguments=_compact_arguments,
)
def compact(options: argparse.Namespace) -> None:
    """Compact, and tell what has changed."""
    with connect(options) as client:
        done = existing_box(client, options).compact()
    if options.json:
        print(render.as_json(done))
        return
    rows = [
        (
            one.entry,
            f"{one.before.huge_pages} -> {one.after.huge_pages}",
            f"{_runs(one.before)} -> {_runs(one.after)}",
            one.left or "-",
        )
        for one in done
    ]
    print(render.table(("ENTRY", "HUGE PAGES", "RUNS", "LEFT"), rows))
