"""`fdbox completion`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.cli.command import command

if TYPE_CHECKING:
    import argparse

SHELLS = ("bash", "zsh", "tcsh")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="whose completion")


@command(
    "completion",
    "Print a shell's completion of this command.",
    example='eval "$(fdbox completion bash)"',
    arguments=_arguments,
)
def completion(options: argparse.Namespace) -> None:
    """Print it."""
    import shtab  # noqa: PLC0415 - only this verb needs it

    from fdbox.cli.main import build_parser  # noqa: PLC0415 - main imports this file

    print(shtab.complete(build_parser(), options.shell))
