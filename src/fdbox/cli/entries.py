"""`fdbox put`, `get`, `ls`, `rm` and `cat`."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

from fdbox.cli import render
from fdbox.cli.command import (
    box_arguments,
    cannot_run,
    check_separator,
    command,
    connect,
    existing_box,
    json_argument,
    owner_argument,
    socket_argument,
)
from fdbox.errors import InvalidDescriptor, UsageError
from fdbox.linux import sdnotify, spawn
from fdbox.linux.fd import OwnedFd, dup, open_path

if TYPE_CHECKING:
    import argparse

    from fdbox.varlink import interface

_CHUNK = 1 << 20


def _box(parser: argparse.ArgumentParser) -> None:
    box_arguments(parser)
    socket_argument(parser)


def _ls_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("box", metavar="BOX", nargs="?", help="the name of the box")
    what.add_argument(
        "--kinds", action="store_true", help="every kind of descriptor, and what of it crosses"
    )
    owner_argument(parser)
    socket_argument(parser)
    json_argument(parser)


def _put_arguments(parser: argparse.ArgumentParser) -> None:
    _box(parser)
    json_argument(parser)
    parser.add_argument("name", metavar="NAME", help="the entry's name")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "path", nargs="?", metavar="PATH", help="opened for reading and writing, or reading"
    )
    what.add_argument("--fd", type=int, metavar="N", help="a descriptor that fdbox has inherited")
    parser.add_argument("--replace", action="store_true", help="let go of what is under NAME now")


def _names_arguments(parser: argparse.ArgumentParser) -> None:
    _box(parser)
    parser.add_argument("names", metavar="NAME", nargs="+", help="the entries' names")


def _get_arguments(parser: argparse.ArgumentParser) -> None:
    _names_arguments(parser)
    parser.usage = "fdbox get [--owner USER] [--socket PATH] BOX NAME... -- CMD [ARG...]"
    parser.set_defaults(takes_command=True)


def _cat_arguments(parser: argparse.ArgumentParser) -> None:
    _box(parser)
    parser.add_argument("name", metavar="NAME", help="the entry's name")


@command(
    "put",
    "Put an open file into a box, which is created if it is not there.",
    example="fdbox put web log /var/log/web.log; fdbox put web conn --fd 7 7<>/dev/tcp/host/80",
    arguments=_put_arguments,
)
def put(options: argparse.Namespace) -> None:
    """Put."""
    with (
        connect(options) as client,
        _open(options.path) if options.path is not None else _inherited(options.fd) as descriptor,
    ):
        box = client.box(options.box, options.owner)
        entry = box.put(options.name, descriptor, replace=options.replace)
    if options.json:
        print(render.as_json(entry))
    elif entry.carrier is None:
        print(
            f"fdbox: warning: a kernel update would lose {render.plain(entry.name)!r}, "
            f"a {entry.kind}: {entry.obstacle} ({entry.remedy})",
            file=sys.stderr,
        )


def _inherited(number: int) -> OwnedFd:
    try:
        return dup(number)
    except (OSError, OverflowError) as error:
        raise InvalidDescriptor(f"descriptor {number} is not open here") from error


def _open(path: str) -> OwnedFd:
    """Return a path open for as much as it allows; a FIFO without waiting for its other end."""
    try:
        try:
            return open_path(path, os.O_RDWR | os.O_NOCTTY)
        except OSError as error:
            if error.errno not in (
                errno.EISDIR,
                errno.EACCES,
                errno.EROFS,
                errno.EPERM,
                errno.ETXTBSY,
            ):
                raise
            return open_path(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise UsageError(
            f"cannot open {path}: {error.strerror}", remedy="name a file that you may read"
        ) from error


@command(
    "get",
    "Run a program with entries as descriptors 3, 4, ... and LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID as systemd sets them.",
    example="fdbox get web listener -- ./server --inherit",
    arguments=_get_arguments,
)
def get(options: argparse.Namespace) -> None:
    """Get, and become the program."""
    if not options.command:
        raise UsageError(
            "no program to run", remedy="name it after `--`: fdbox get BOX NAME -- CMD"
        )
    names = [check_separator(name) for name in options.names]
    with connect(options) as client:
        found = existing_box(client, options).get_many(names)
    environment = {**os.environ, **sdnotify.inheritance(names)}
    try:
        spawn.become(options.command, environment, [found[name].fileno() for name in names])
    except OSError as error:
        raise cannot_run(options.command[0], error) from error


@command(
    "ls",
    "List a box: what each entry is, and what carries it across a kexec on this machine. Or list all kinds.",
    example="fdbox ls cache; fdbox ls --kinds",
    arguments=_ls_arguments,
)
def ls(options: argparse.Namespace) -> None:
    """List."""
    if options.kinds:
        _list_kinds(json=options.json)
        return
    with connect(options) as client:
        found = existing_box(client, options).list()
    if options.json:
        print(render.as_json(found))
        return
    rows = [
        [entry.name, entry.kind, render.size(entry.size), entry.carrier or "nothing", entry.label]
        for entry in found
    ]
    print(render.table(["NAME", "KIND", "SIZE", "CARRIED BY", "LABEL"], rows))
    for reason, names in _reasons(found).items():
        print(f"\nnothing carries {', '.join(map(render.plain, names))}: {reason}")


def _list_kinds(*, json: bool) -> None:
    """Show what fdbox knows, on any machine; whether this one has a carrier, `fdbox status` tells."""
    from fdbox.kinds import registry  # noqa: PLC0415 - no other verb needs them, and they take time

    if json:
        print(render.as_json([row._asdict() for row in registry.table()]))
        return
    for row in registry.table():
        print(f"{row.name}: {row.about}")
        if row.keeps:
            print(f"    keeps {row.keeps}")
        if row.loses:
            print(f"    {'loses' if row.keeps else 'cannot cross:'} {row.loses}")


def _reasons(entries: list[interface.Entry]) -> dict[str, list[str]]:
    """Return the names of what nothing carries, by the reason."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry.carrier is None:
            reasons.setdefault(f"{entry.obstacle} ({entry.remedy})", []).append(entry.name)
    return reasons


@command(
    "rm", "Remove entries, all or none.", example="fdbox rm cache old", arguments=_names_arguments
)
def rm(options: argparse.Namespace) -> None:
    """Remove."""
    with connect(options) as client:
        existing_box(client, options).remove(*options.names)


@command(
    "cat",
    "Write an entry's bytes to standard output: a file's from its beginning, without moving its position; a stream's to its end.",
    example="fdbox cat cache index > index.bin",
    arguments=_cat_arguments,
)
def cat(options: argparse.Namespace) -> None:
    """Copy to standard output."""
    with connect(options) as client, existing_box(client, options).get(options.name) as entry:
        at = 0 if stat.S_ISREG(os.fstat(entry.fileno()).st_mode) else None
        sys.stdout.flush()
        try:
            while piece := _read(entry.fileno(), at):
                at = None if at is None else at + len(piece)
                sys.stdout.buffer.write(piece)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UsageError(
                f"cannot read {options.name!r}: {error.strerror}",
                remedy="`fdbox ls` shows what kind it is",
            ) from error
        sys.stdout.buffer.flush()


def _read(fd: int, at: int | None) -> bytes:
    return os.read(fd, _CHUNK) if at is None else os.pread(fd, _CHUNK, at)
