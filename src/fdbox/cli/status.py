"""`fdbox status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.cli import render
from fdbox.cli.command import command, connect, json_argument, socket_argument
from fdbox.errors import KeeperGone

if TYPE_CHECKING:
    import argparse


def _arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)


@command(
    "status",
    "Show the daemon, what this machine has to carry boxes, and what came from the last kernel.",
    example="fdbox status --json",
    arguments=_arguments,
)
def status(options: argparse.Namespace) -> None:
    """Show."""
    with connect(options) as client:
        found = client.status()
    if options.json:
        print(render.as_json(found))
        return
    carrier = found.carrier or f"nothing: {found.obstacle} ({found.remedy})"
    print(f"fdbox        {found.version}")
    print(f"kernel       {found.incarnation}")
    print(f"holds        {found.entries} entries in {found.boxes} boxes")
    if not found.kept:
        print(f"kept by      nobody: the keeper is gone ({KeeperGone.remedy})")
    print(f"carried by   {carrier}")
    print(f"update       {found.phase}")
    if found.waiting:
        print(f"waiting for  {render.plain(', '.join(found.waiting))}")
    print(f"arrived      {found.arrived} entries from the last kernel")
    for loss in found.lost:
        what = f"{loss.box}/{loss.entry}" if loss.entry else loss.box
        print(
            f"lost         {render.plain(what)} of user {loss.owner}: {render.plain(loss.reason)}"
        )
