"""`fdbox doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.cli import images, render
from fdbox.cli.command import command, connect, json_argument, socket_argument
from fdbox.errors import ConnectionLost
from fdbox.nextkernel.inspect import inspect
from fdbox.service import config as configuration
from fdbox.service.doctor import checks, facts
from fdbox.service.doctor.checks import Finding, Level

if TYPE_CHECKING:
    import argparse

    from fdbox.nextkernel.inspect import KernelImage

#: what an exit status of 1 means here is documented: not ready
_READY, _NOT_READY = 0, 1
_SAID = {
    checks.KERNEL: "by the kernel, over a kexec: memory stays where it is",
    checks.IMAGE: "as files, over a kexec",
    checks.REBOOT: "as files, over a reboot (fdbox update --reboot)",
}
_ORDER = (Level.OBSTACLE, Level.UNKNOWN, Level.WARNING, Level.OK)


def _arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)
    parser.add_argument("--kernel", metavar="IMAGE|VERSION", help="look at this next kernel, too")
    parser.add_argument("--initrd", type=Path, metavar="IMAGE", help="its initial file system")
    images.line_arguments(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the daemon's configuration (default: as for it)",
    )


@command(
    "doctor",
    "Look at everything that decides whether an update would succeed here, and say what to do.\n"
    "Exit status 0: it would, by at least one way. 1: it would not. As root it sees most.",
    example="fdbox doctor --kernel 7.3.4-amd64 --reuse-cmdline",
    arguments=_arguments,
)
def doctor(options: argparse.Namespace) -> int:
    """Look and tell."""
    directory = configuration.image_directory(configuration.load(options.config).image)
    found = checks.judge(facts.gather(directory, _daemon(options), _next(options)))
    ways = checks.ways(found)
    if options.json:
        print(render.as_json({"ways": ways, "findings": [_document(one) for one in found]}))
    else:
        print(_text(found, ways))
    return _READY if ways else _NOT_READY


def _daemon(options: argparse.Namespace) -> facts.Daemon | None:
    try:
        with connect(options) as client:
            sizes = [
                entry.size or 0
                for box in client.boxes()
                for entry in client.existing_box(
                    box.name, box.owner if os.geteuid() == 0 else None
                ).list()
            ]
            prediction = client.predict().total if os.geteuid() == 0 else None
            return facts.Daemon(status=client.status(), held=sum(sizes), prediction=prediction)
    except ConnectionLost:
        return None


def _next(options: argparse.Namespace) -> tuple[KernelImage, int, str] | None:
    if options.kernel is None:
        return None
    chosen = images.choose(options.kernel)
    initrd = options.initrd or chosen.initrd
    with images.open_image(chosen.path) as file:
        image = inspect(file.fileno())
    size = 0 if initrd is None else initrd.stat().st_size
    return image, size, images.command_line(options)


def _document(one: Finding) -> dict[str, object]:
    return {
        "check": one.check,
        "level": one.said.level.value,
        "says": one.said.text,
        "remedy": one.said.remedy,
        "blocks": list(one.said.blocks),
    }


def _text(found: list[Finding], ways: list[str]) -> str:
    lines = []
    for level in _ORDER:
        for one in (one for one in found if one.said.level is level):
            lines.append(f"{level.value:9} {one.check:20} {render.plain(one.said.text)}")
            if one.said.remedy:
                lines.append(f"{'':9} {'':20} -> {render.plain(one.said.remedy)}")
    lines.append("")
    lines += [f"boxes would cross {_SAID[way]}" for way in ways]
    if not ways:
        lines.append("nothing would cross: see the obstacles")
    return "\n".join(lines)
