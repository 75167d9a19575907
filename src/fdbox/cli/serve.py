"""`fdbox serve`."""

from __future__ import annotations

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
    "Run the daemon until SIGTERM. What boxes hold lives as long as it runs.",
    example="fdbox serve --config /etc/fdbox/config.toml",
    arguments=_arguments,
)
def serve(options: argparse.Namespace) -> None:
    """Serve."""
    from fdbox.service import config, daemon  # noqa: PLC0415 - no client needs them, and they take time

    daemon.run(config.load(options.config), options.socket or default_socket())
