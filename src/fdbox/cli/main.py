"""The `fdbox` command: one parser made from the verbs, and the only place that ends the process."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

import fdbox
from fdbox.cli import (
    box,
    completion,
    doctor,
    entries,
    inspect,
    memory,
    render,
    serve,
    status,
    transfer,
    update,
)
from fdbox.cli import (
    run as run_verb,
)
from fdbox.cli.command import COMMANDS, Command
from fdbox.errors import FdboxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Their import declares the verbs; help lists them in this order.
VERBS = (
    serve,
    box,
    entries,
    memory,
    run_verb,
    doctor,
    inspect,
    update,
    transfer,
    status,
    completion,
)

_INTERRUPTED = 130
_DESCRIPTION = """\
Keep alive what stands behind a file descriptor (memory, sockets, pipes) while the process that holds it is
restarted, and while the kernel under it is replaced by kexec.

A box has named entries and one owner. Programs put descriptors in, and take them out again after a restart."""
_EPILOG = """\
exit status: 0 done; 1 failed; 2 the command line makes no sense; 10 and more: one for each error (docs/errors.md).
The daemon's socket: $FDBOX_SOCKET, else /run/fdbox/io.fdbox as root, else $XDG_RUNTIME_DIR/fdbox/io.fdbox."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="fdbox",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fdbox {fdbox.__version__}")
    top = parser.add_subparsers(metavar="COMMAND", required=True)
    groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    for declared in COMMANDS:
        group, _, name = declared.name.rpartition(" ")
        if group and group not in groups:
            inner = top.add_parser(group, help=f"{group}es: create, delete, list, seal, unseal")
            groups[group] = inner.add_subparsers(metavar="COMMAND", required=True)
        _add(groups[group] if group else top, name, declared)
    return parser


def _add(
    parsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, declared: Command
) -> None:
    parser = parsers.add_parser(
        name,
        help=declared.brief,
        description=declared.summary,
        epilog=f"example: {declared.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    declared.arguments(parser)
    parser.set_defaults(verb=declared.verb)


def run(arguments: Sequence[str]) -> int:
    """Do what a command line says; return the exit status."""
    own, command = _split(arguments)
    try:
        options = build_parser().parse_args(own)
    except SystemExit as end:  # argparse has said why
        return int(end.code or 0)
    options.command = command
    try:
        if command and not getattr(options, "takes_command", False):
            raise UsageError("this command takes no program after `--`")
        status = options.verb(options)
        sys.stdout.flush()
    except FdboxError as error:
        _complain(error, as_json=getattr(options, "json", False))
        return error.exit_status
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return int(status or 0)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return our own arguments, and the program after `--`."""
    own = list(arguments)
    if "--" not in own:
        return own, []
    at = own.index("--")
    return own[:at], own[at + 1 :]


def _complain(error: FdboxError, *, as_json: bool) -> None:
    if as_json:
        text = render.as_json({"error": error.wire_name, **error.parameters()})
    else:
        text = f"fdbox: {render.plain(str(error))}"
    print(text, file=sys.stderr)


def main() -> None:
    """Do what this process's command line says, and end it."""
    sys.exit(run(sys.argv[1:]))
