"""`fdbox box create|delete|list|seal|unseal`."""

from __future__ import annotations

import pwd
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


def _arguments(parser: argparse.ArgumentParser) -> None:
    box_arguments(parser)
    socket_argument(parser)
    json_argument(parser)


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments(parser)
    parser.add_argument("--exclusive", action="store_true", help="fail if it is there already")


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)


def _report(options: argparse.Namespace, box: interface.Box) -> None:
    if options.json:
        print(render.as_json(box))


@command(
    "box create",
    "Create a box, if it is not there.",
    example="fdbox box create cache",
    arguments=_create_arguments,
)
def create(options: argparse.Namespace) -> None:
    """Create."""
    with connect(options) as client:
        box = client.box(options.box, options.owner, exclusive=options.exclusive)
        if options.json:
            found = (
                one for one in client.boxes() if (one.name, one.owner) == (box.name, box.owner)
            )
            _report(options, next(found))


@command(
    "box delete",
    "Delete a box and let go of everything in it.",
    example="fdbox box delete cache",
    arguments=_arguments,
)
def delete(options: argparse.Namespace) -> None:
    """Delete."""
    with connect(options) as client:
        existing_box(client, options).delete()


@command(
    "box list",
    "List your boxes; as root, everybody's.",
    example="fdbox box list --json",
    arguments=_list_arguments,
)
def list_boxes(options: argparse.Namespace) -> None:
    """List."""
    with connect(options) as client:
        boxes = client.boxes()
    if options.json:
        print(render.as_json(boxes))
        return
    rows = [[box.name, _user(box.owner), box.state, str(box.entries)] for box in boxes]
    print(render.table(["BOX", "OWNER", "STATE", "ENTRIES"], rows))


@command(
    "box seal",
    "Save everything in a box, so that it crosses the next kexec. It takes no changes until it is unsealed.",
    example="fdbox box seal cache",
    arguments=_arguments,
)
def seal(options: argparse.Namespace) -> None:
    """Seal."""
    with connect(options) as client:
        _report(options, existing_box(client, options).seal())


@command(
    "box unseal",
    "Drop what was saved of a box; what is in it goes on where it is.",
    example="fdbox box unseal cache",
    arguments=_arguments,
)
def unseal(options: argparse.Namespace) -> None:
    """Unseal."""
    with connect(options) as client:
        _report(options, existing_box(client, options).unseal())


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
