"""How the last update went, in a file beside the images: what left is compared with what has arrived.

It is written right before the jump, and again at the arrival: where nothing arrives at all, only this file tells.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import msgspec

from fdbox.errors import NoUpdate
from fdbox.linux import files
from fdbox.linux.fd import open_path
from fdbox.varlink.interface import LastUpdateReply, LeftBox, LeftEntry, Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from fdbox.handover.seal import SealedBox
    from fdbox.model import BoxKey

NAME = "last-update.json"

log: logging.Logger = logging.getLogger(__name__)


class LastUpdate:
    """The report; `folder` is where it lies, None for nowhere."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / NAME
        self._report: LastUpdateReply | None = self._read()

    def report(self) -> LastUpdateReply:
        """Return it; NoUpdate if there was none."""
        if self._report is None:
            raise NoUpdate(
                "nothing is known of an update here", remedy="update, or look at the log"
            )
        return self._report

    def leaves(
        self, incarnation: str, phases: Mapping[str, int], boxes: Iterable[SealedBox]
    ) -> None:
        """Write down what is about to leave."""
        left = [
            LeftBox(
                box=one.box.name,
                owner=one.box.owner,
                entries=[
                    LeftEntry(
                        name=load.entry, kind=load.kind, carrier=load.carrier, bytes=load.size
                    )
                    for load in one.loads
                ],
            )
            for one in boxes
        ]
        self._write(LastUpdateReply(incarnation=incarnation, phases=dict(phases), boxes=left))

    def fails(self, incarnation: str, phases: Mapping[str, int], reason: str) -> None:
        """Write down why an update was undone."""
        self._write(
            LastUpdateReply(incarnation=incarnation, phases=dict(phases), boxes=[], failure=reason)
        )

    def arrives(
        self, incarnation: str, now: int, there: Callable[[str], Mapping[BoxKey, Iterable[str]]]
    ) -> None:
        """Compare what left with what is there, at the first start in another incarnation.

        `there` returns the entries by the boxes in which they have left an incarnation.
        """
        report = self._report
        if report is None or report.failure or report.arrived is not None:
            return
        if report.incarnation == incarnation:
            return
        came = there(report.incarnation)
        names = {(key.owner, key.name): set(entries) for key, entries in came.items()}
        missing = [
            Loss(
                box=box.box,
                owner=box.owner,
                entry=entry.name,
                reason=f"a {entry.kind} that left by {entry.carrier}",
            )
            for box in report.boxes
            for entry in box.entries
            if entry.name not in names.get((box.owner, box.box), ())
        ]
        for one in missing:
            log.error("did not arrive: %s/%s of user %d", one.box, one.entry, one.owner)
        self._write(msgspec.structs.replace(report, arrived=now, missing=missing))

    def _read(self) -> LastUpdateReply | None:
        if self._path is None:
            return None
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=LastUpdateReply)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("cannot read %s: %s", self._path, error)
            return None

    def _write(self, report: LastUpdateReply) -> None:
        """Keep the report. That it cannot be written is no reason against an update."""
        self._report = report
        if self._path is None:
            return
        try:
            _write_safely(self._path, msgspec.json.encode(report))
        except OSError as error:
            log.warning("how the update goes is not written down: %s", error)


def _write_safely(path: Path, data: bytes) -> None:
    files.make_folder(path.parent)
    fresh = path.with_suffix(".new")
    with open_path(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        done = 0
        while done < len(data):
            done += os.write(file.fileno(), data[done:])
        os.fsync(file.fileno())
    fresh.rename(path)
    files.sync_folder(path.parent)
