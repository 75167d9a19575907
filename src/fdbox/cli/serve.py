"""`fdbox serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.address import default_socket
from fdbox.cli.command import command, socket_argument

if TYPE_CHECKING:
    import argparse


def _arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML (default: /etc/fdbox/config.toml as root, else ~/.config/fdbox/config.toml)",
    )


@command(
    "serve",
    "Run the daemon until SIGTERM. What boxes hold lives as long as it runs.\n"
    "It is two processes: a keeper, which holds a copy of everything, and the service, which the keeper starts\n"
    "again when it dies. SIGHUP replaces the service by the code now on disk. Under systemd with\n"
    "FileDescriptorStoreMax= systemd is the keeper.",
    example="fdbox serve --config /etc/fdbox/config.toml",
    arguments=_arguments,
)
def serve(options: argparse.Namespace) -> None:
    """Serve, or keep who serves."""
    from fdbox.keeper import process  # noqa: PLC0415 - as below
    from fdbox.service import config, daemon  # noqa: PLC0415 - no client needs them, and they take time

    settings = config.load(options.config)
    if daemon.is_kept():
        status = process.RESTART if daemon.run(settings, options.socket or default_socket()) else 0
    else:
        status = process.run([sys.executable, "-m", "fdbox", *sys.argv[1:]])
    if status:
        raise SystemExit(status)
