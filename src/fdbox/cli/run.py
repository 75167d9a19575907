"""`fdbox run`."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

import fdbox
from fdbox.cli.command import (
    cannot_run,
    check_separator,
    command,
    owner_argument,
    socket_argument,
)
from fdbox.errors import UsageError

if TYPE_CHECKING:
    from fdbox.service.supervisor import Holder

_RESTART = ("on-failure", "always", "no")
_MAX_FDS = 4096
#: seconds that the daemon may take: meanwhile nobody supervises
_PATIENCE = 2.0
#: their names travel in one environment variable, which takes 128 KiB
_MOST_FDS = 16384


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--box",
        metavar="BOX",
        help="store in this box, so that it outlives `fdbox run`, and the kernel; it is created if it is not there",
    )
    owner_argument(parser)
    socket_argument(parser)
    parser.add_argument(
        "--restart",
        choices=_RESTART,
        default="on-failure",
        help="when to start it again (default: %(default)s)",
    )
    parser.add_argument(
        "--max-fds",
        type=_count,
        default=_MAX_FDS,
        metavar="N",
        help="descriptors that it may store (default: %(default)s)",
    )
    parser.usage = "fdbox run [--box BOX] [--restart WHEN] [--max-fds N] -- CMD [ARG...]"
    parser.set_defaults(takes_command=True)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_FDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MOST_FDS}")
    return int(text)


@command(
    "run",
    "Run a program with a file descriptor store, as systemd has one: what it stores with FDSTORE=1 (sd_notify(3)) is\n"
    "given to it again as LISTEN_FDS when it is started again. Needs neither systemd nor a daemon; works as process 1 of\n"
    "a container. SIGTERM, SIGINT and SIGQUIT end it, and its exit status is ours.",
    example="fdbox run --box web --restart always -- ./server",
    arguments=_arguments,
)
def run(options: argparse.Namespace) -> int:
    """Supervise the program until it ends for good."""
    from fdbox.service.boxshelf import BoxShelf, stored_name  # noqa: PLC0415 - only this verb needs them, and they take time
    from fdbox.service.supervisor import OwnStore, Restart, Supervisor  # noqa: PLC0415 - as above

    if not options.command:
        raise UsageError("no program to run", remedy="name it after `--`: fdbox run -- CMD")
    logging.basicConfig(level=logging.INFO, format="fdbox run: %(message)s")
    with ExitStack() as stack:
        store: Holder
        if options.box is None:
            own = store = OwnStore(options.max_fds)
            stack.callback(own.close)
        else:
            client = fdbox.connect(options.socket, timeout=_PATIENCE)
            box = stack.enter_context(client).box(options.box, options.owner)
            for entry in box.list():
                check_separator(stored_name(entry.name))
            shelf = store = BoxShelf(box, options.max_fds)
            stack.callback(shelf.close)
        supervisor = Supervisor(options.command, store, Restart(options.restart), options.max_fds)
        stack.callback(supervisor.close)
        try:
            return supervisor.run()
        except OSError as error:
            raise cannot_run(options.command[0], error) from error
