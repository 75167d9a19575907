"""`fdbox export` and `fdbox import`."""

from __future__ import annotations

import contextlib
import errno
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
from fdbox.errors import KernelError, NoRoom, UsageError
from fdbox.handover.carriers.single import FREE_SOME
from fdbox.linux import paths
from fdbox.linux.files import FULL
from fdbox.linux.newfile import NewFile

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_ELSEWHERE = "name a file in a folder that you may write to"
_REMEDIES = {
    errno.EEXIST: "name another, or remove it",
    errno.ENOENT: "name a file in a folder that is there",
    errno.ENOTDIR: "name a file in a folder that is there",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "name a folder that is one",
    errno.EINVAL: "give it a name that its file system takes",
    errno.EILSEQ: "give it a name that its file system takes",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
}


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
    with connect(options) as client, _writing(options.file), NewFile(options.file) as file:
        size = existing_box(client, options).export(file)
        file.keep()
    name = paths.shown(str(options.file))
    if options.json:
        print(render.as_json({"file": name, "bytes": size}))
    else:
        print(f"{render.plain(name)}: {render.size(size)}")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say of which file an error is, and what to do."""
    if not path.name:
        raise UsageError(f"{str(path)!r} names no file", remedy="name one that is not there yet")
    try:
        yield
    except FileExistsError as error:
        raise UsageError(f"{path} is there already", remedy=_REMEDIES[errno.EEXIST]) from error
    except OSError as error:
        code, sentence = error.errno or 0, f"cannot write {path}: {error.strerror}"
        if code in FULL:
            raise NoRoom(sentence, remedy=FREE_SOME) from error
        if code in _REMEDIES:
            raise UsageError(sentence, remedy=_REMEDIES[code]) from error
        raise KernelError(sentence, errno=code) from error


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
