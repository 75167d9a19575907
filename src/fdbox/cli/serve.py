"""`fdbox serve` and `fdbox reexec`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.address import default_socket
from fdbox.cli import render
from fdbox.cli.command import command, connect, json_argument, socket_argument
from fdbox.keeper import process, protocol
from fdbox.linux import cmdline, sdnotify, spawn

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
    "again when it dies. SIGHUP does what `fdbox reexec` does. Under systemd with FileDescriptorStoreMax= systemd is\n"
    "the keeper.",
    example="fdbox serve --config /etc/fdbox/config.toml",
    arguments=_arguments,
)
def serve(options: argparse.Namespace) -> int:
    """Serve, or keep who serves, or become the code that takes over."""
    if not protocol.is_kept(os.environ):
        _be_seen_as("keeper")
        return process.run(_own_command())
    from fdbox.service import daemon  # noqa: PLC0415 - no client and no keeper needs them, and they take time

    _be_seen_as("serve")
    heirlooms = daemon.run(options.config, options.socket or default_socket())
    if heirlooms is not None:
        environment = {**os.environ, **sdnotify.inheritance([name for name, _ in heirlooms])}
        spawn.become(_own_command(), environment, [fd.fileno() for _, fd in heirlooms])
    return 0


def _own_command() -> list[str]:
    """Return this very command line, for the code on disk. -P: not for what lies in the folder where it is started."""
    return [sys.executable, "-P", "-m", "fdbox", *sys.argv[1:]]


def _be_seen_as(what: str) -> None:
    """Show in `ps` who this is; for root behind an @, which tells systemd to spare it at a shutdown until the kexec."""
    cmdline.show(["@fdbox" if os.geteuid() == 0 else "fdbox", what, *sys.argv[2:]])


def _reexec_arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)


@command(
    "reexec",
    "Have the code now on disk take over from the daemon, its keeper's too. Nothing that is held is let go, every call\n"
    "is answered, and clients connect again by themselves. Code that does not start is refused.",
    example="fdbox reexec",
    arguments=_reexec_arguments,
)
def reexec(options: argparse.Namespace) -> None:
    """Ask for it, and wait until the new one answers."""
    with connect(options) as client:
        version = client.reexec()
        client.status()  # of the one that has taken over: the connection to the one before has ended
    if options.json:
        print(render.as_json({"version": version}))
    else:
        print(f"fdbox {version} has taken over")
