"""How a verb is declared: beside the function that does it.

    @command("rm", "Remove entries from a box.", example="fdbox rm cache old", arguments=_rm_arguments)
    def rm(options: argparse.Namespace) -> None: ...

A verb prints what it has to say, returns an exit status if it has one of its own, and raises an `FdboxError` when it
cannot do it; only main.py ends the process.
"""

from __future__ import annotations

import argparse
import errno
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fdbox
from fdbox.errors import UsageError

#: not at "3, 4, ... and more"
_SENTENCE_ENDS = re.compile(r"\.(?= [A-Z])")

Verb = Callable[[argparse.Namespace], int | None]
Arguments = Callable[[argparse.ArgumentParser], None]


@dataclass(frozen=True, slots=True)
class Command:
    """A verb; `name` has two words where it belongs to a group ("box create")."""

    name: str
    summary: str
    example: str
    arguments: Arguments
    verb: Verb

    @property
    def brief(self) -> str:
        """The summary's first sentence, on one line."""
        text = " ".join(self.summary.splitlines())
        end = _SENTENCE_ENDS.search(text)
        return text[: end.end()] if end else text


COMMANDS: list[Command] = []


def _no_arguments(_: argparse.ArgumentParser) -> None:
    """Take nothing."""


def command(
    name: str, summary: str, *, example: str, arguments: Arguments = _no_arguments
) -> Callable[[Verb], Verb]:
    """Declare the function below as a verb."""

    def declare(verb: Verb) -> Verb:
        COMMANDS.append(Command(name, summary, example, arguments, verb))
        return verb

    return declare


def connect(options: argparse.Namespace) -> fdbox.Client:
    """Return a client of the daemon that the command line names."""
    return fdbox.connect(options.socket)


def socket_argument(parser: argparse.ArgumentParser) -> None:
    """--socket."""
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="the daemon's socket (default: $FDBOX_SOCKET, or where `fdbox serve` listens)",
    )


def json_argument(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for a program to read")


def box_arguments(parser: argparse.ArgumentParser) -> None:
    """BOX and --owner."""
    parser.add_argument("box", metavar="BOX", help="the name of the box")
    owner_argument(parser)


def owner_argument(parser: argparse.ArgumentParser) -> None:
    """--owner."""
    parser.add_argument(
        "--owner", type=uid, metavar="USER", help="whose box, for root: a name or a number"
    )


def uid(text: str) -> int:
    """Return the user id that a name or a number stands for."""
    if text.isdecimal():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no user {text!r}") from None


_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def size(text: str) -> int:
    """Return the bytes that "4096", "64K", "1G" or "1.5GiB" stands for; units are powers of 1024."""
    number = text.upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        found = float(number.removesuffix(unit) if unit else number) * (1 << _UNITS[unit])
    except ValueError:
        found = 0
    if not 1 <= found < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 4096, 64K, 10M or 1.5G")
    return int(found)


def existing_box(client: fdbox.Client, options: argparse.Namespace) -> fdbox.Box:
    """Return the box that the command line names, without making one; that it is there is seen by what follows."""
    return client.existing_box(options.box, options.owner)


def check_separator(name: str) -> str:
    """Return a name that can stand in LISTEN_FDNAMES."""
    if ":" in name:
        raise UsageError(
            f"the entry name {name!r} has a ':', which separates the names in LISTEN_FDNAMES",
            remedy="put it under a name without ':'",
        )
    return name


class ProgramNotFound(UsageError):
    """Raised when the program to run is not there, with the status that shells use."""

    exit_status = 127


class ProgramNotRunnable(UsageError):
    """Raised when the program to run cannot be run, with the status that shells use."""

    exit_status = 126


def cannot_run(program: str, error: OSError) -> UsageError:
    """Return the error for a program that execve(2) refused."""
    kind = ProgramNotFound if error.errno == errno.ENOENT else ProgramNotRunnable
    return kind(f"cannot run {program}: {error.strerror}", remedy="name an executable program")
