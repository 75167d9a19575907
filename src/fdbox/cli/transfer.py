"""`fdbox export` and `fdbox import`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.cli import images, render
from fdbox.cli.command import (
    box_arguments,
    command,
    connect,
    existing_box,
    json_argument,
    owner_argument,
    socket_argument,
)
from fdbox.errors import UsageError
from fdbox.linux.fd import open_path

if TYPE_CHECKING:
    import argparse


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)
    box_arguments(parser)
    parser.add_argument("file", metavar="FILE", type=Path, help="a file that is not there yet")


@command(
    "export",
    "Write a box to a file, for `fdbox import` on another machine. The box goes on as it is.",
    example="fdbox export cache /mnt/usb/cache.fdbox",
    arguments=_export_arguments,
)
def export(options: argparse.Namespace) -> None:
    """Export: the file is there when it is complete."""
    if options.file.exists():
        raise UsageError(f"{options.file} is there already", remedy="name another, or remove it")
    fresh = options.file.with_name(f"{options.file.name}.new")
    with connect(options) as client:
        try:
            with open_path(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as file:
                size = existing_box(client, options).export(file)
            fresh.rename(options.file)
        except OSError as error:
            raise UsageError(f"cannot write {fresh}: {error.strerror}") from error
        finally:
            fresh.unlink(missing_ok=True)
    if options.json:
        print(render.as_json({"file": str(options.file), "bytes": size}))
    else:
        print(f"{options.file}: {render.size(size)}")


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)
    parser.add_argument("file", metavar="FILE", type=Path, help="what `fdbox export` has written")
    parser.add_argument(
        "box", metavar="BOX", nargs="?", help="the name of the new box (default: the one it had)"
    )
    owner_argument(parser)


@command(
    "import",
    "Make a new box of what `fdbox export` has written on another machine. Exit status 1: not all of it could be made.",
    example="fdbox import /mnt/usb/cache.fdbox",
    arguments=_import_arguments,
)
def import_(options: argparse.Namespace) -> int:
    """Import, and say what is lost."""
    with images.open_image(options.file) as file, connect(options) as client:
        came = client.import_box(file, options.box, options.owner)
    if options.json:
        print(render.as_json(came))
    else:
        print(f"box {render.plain(came.box.name)}: {came.box.entries} entries")
        for loss in came.lost:
            lost = f"{render.plain(loss.entry)}: {render.plain(loss.reason)}"
            print(f"fdbox: lost of {lost}", file=sys.stderr)
    return 1 if came.lost else 0
