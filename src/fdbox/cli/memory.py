"""`fdbox memory`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fdbox.cli import render
from fdbox.cli.command import box_arguments, command, connect, json_argument, size, socket_argument
from fdbox.errors import UsageError

if TYPE_CHECKING:
    import argparse

    import fdbox


def _arguments(parser: argparse.ArgumentParser) -> None:
    box_arguments(parser)
    socket_argument(parser)
    json_argument(parser)
    parser.add_argument("name", metavar="NAME", help="the entry's name")
    parser.add_argument("--size", type=size, metavar="SIZE", help="4096, 64K, 10M, 1.5G")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="fill new memory with a file; --size is then the file's, unless given",
    )


@command(
    "memory",
    "Create memory that outlives process and kernel, or recover it; say which. Recovered memory is never overwritten.",
    example="fdbox memory cache index --size 1G; fdbox memory cache words --from words.bin",
    arguments=_arguments,
)
def memory(options: argparse.Namespace) -> None:
    """Create or recover."""
    with ExitStack() as stack:
        source = None if options.source is None else stack.enter_context(_open(options.source))
        wanted = options.size or (None if source is None else options.source.stat().st_size)
        client = stack.enter_context(connect(options))
        found = client.box(options.box, options.owner).memory(options.name, wanted)
        stack.enter_context(found)
        if source is not None:
            _fill(found, source, options.source)
        if options.json:
            print(
                render.as_json(
                    {"name": found.name, "size": found.size, "recovered": found.recovered}
                )
            )
        else:
            how = "recovered" if found.recovered else "created"
            print(f"{how} {render.plain(found.name)}: {render.size(found.size)}")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(
            f"cannot open {path}: {error.strerror}", remedy="name a file that you may read"
        ) from error


def _fill(memory: fdbox.Memory, source: BinaryIO, path: Path) -> None:
    if memory.recovered:
        raise UsageError(
            f"the memory {memory.name!r} is there already, and was left as it is",
            remedy="leave --from out to recover it, or `fdbox rm` it first",
        )
    with memory.buffer as buffer:
        done = 0
        while count := source.readinto(buffer[done:]):  # type: ignore[attr-defined]  # an unbuffered file has it
            done += count
        if source.read(1):
            raise UsageError(f"{path} has more than {len(buffer)} bytes", remedy="leave --size out")
