"""`fdbox inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.cli import images, render
from fdbox.cli.command import command, json_argument
from fdbox.errors import UsageError
from fdbox.nextkernel.inspect import KernelImage, inspect
from fdbox.nextkernel.running import Running, Written, running
from fdbox.nextkernel.verdict import Verdict, by_files, judge

if TYPE_CHECKING:
    import argparse

#: what decides whether a kernel takes anything over
_OPTIONS = ("KEXEC_HANDOVER", "KEXEC_HANDOVER_ENABLE_DEFAULT", "LIVEUPDATE", "LIVEUPDATE_MEMFD")
_PARTS = ("kho", "luo", "memfd", "others")


def _arguments(parser: argparse.ArgumentParser) -> None:
    json_argument(parser)
    parser.add_argument(
        "image", metavar="IMAGE|VERSION", help="a kernel image, or the version of one installed"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="its configuration (default: from inside, or beside it)",
    )
    images.line_arguments(parser)


@command(
    "inspect",
    "Read a kernel image: what it is, what it accepts, and whether it would take over what this kernel hands over.\n"
    "Exit status 0: it would, with this command line. 1: it would not. As root it sees most.",
    example="fdbox inspect /boot/vmlinuz-NEW --reuse-cmdline",
    arguments=_arguments,
)
def inspect_verb(options: argparse.Namespace) -> int:
    """Inspect and judge; return the exit status."""
    with images.open_image(images.choose(options.image).path) as file:
        try:
            image = inspect(file.fileno(), options.config)
        except OSError as error:
            raise UsageError(
                f"cannot read {error.filename or options.image}: {error.strerror}"
            ) from error
    line = images.command_line(options)
    now = running()
    verdict = judge(image, now, line)
    if options.json:
        print(render.as_json(_document(image, now, line, verdict)))
    else:
        print(_text(image, now, line, verdict))
    return 0 if verdict.handover else 1


def _text(image: KernelImage, now: Running, line: str, verdict: Verdict) -> str:
    config = image.configuration
    options = {} if config is None else config.options
    rows = [
        ("image", image.path),
        ("format", f"{image.format} for {image.machine}, {image.compression or 'not compressed'}"),
        ("release", image.release),
        ("version", image.banner),
        ("signed", "yes" if image.signed else "no"),
        ("memory", f"{render.size(image.memory)} in one piece, to start"),
        ("command line", line or "(empty)"),
        ("configuration", "not found" if config is None else config.source),
        *((f"  {name}", options.get(name, "n")) for name in _OPTIONS if config is not None),
    ]
    head = "\n".join(f"{name:32}{render.plain(value)}" for name, value in rows)
    return f"{head}\n\n{_formats(image, now)}\n\n{_judgement(verdict, now)}"


def _formats(image: KernelImage, now: Running) -> str:
    rows = [
        (
            part,
            _strings(_written(now, part)),
            _written(now, part).source,
            " ".join(_accepted(image, part)) or "nothing",
        )
        for part in _PARTS
    ]
    return render.table(("FORMAT", "THIS KERNEL WRITES", "AS READ IN", "THE NEXT ACCEPTS"), rows)


def _written(now: Running, part: str) -> Written:
    written: Written = getattr(now, part)
    return written


def _accepted(image: KernelImage, part: str) -> tuple[str, ...]:
    strings: tuple[str, ...] = getattr(image.abi, part)
    return strings


def _strings(written: Written) -> str:
    if written.strings is None:
        return "unknown"
    return " ".join(written.strings) or "nothing"


def _judgement(verdict: Verdict, now: Running) -> str:
    lines = [
        "It takes over what this kernel hands over."
        if verdict.handover
        else "It does not take over what boxes hold."
    ]
    if otherwise := by_files(verdict, now):
        lines.append(f"{otherwise[0].upper()}{otherwise[1:]}.")
    for problem in verdict.problems:
        lines.append(f"- {render.plain(str(problem))}")
        lines.append(f"  {render.plain(problem.remedy)}")
    return "\n".join(lines)


def _document(image: KernelImage, now: Running, line: str, verdict: Verdict) -> dict[str, object]:
    config = image.configuration
    return {
        **{
            name: getattr(image, name)
            for name in ("path", "format", "machine", "compression", "release", "banner")
        },
        "signed": image.signed,
        "obstacles": image.obstacles,
        "memory": image.memory,
        "preferredAddress": image.preferred_address,
        "configuration": None if config is None else config.source,
        "options": None
        if config is None
        else {name: config.options.get(name, "n") for name in _OPTIONS},
        "accepts": asdict(image.abi),
        "commandLine": line,
        "running": {
            "release": now.release,
            "handover": now.handover,
            "liveupdate": now.liveupdate,
            "demandsSignature": now.demands_signature,
            "writes": {part: asdict(_written(now, part)) for part in _PARTS},
        },
        "takesOver": verdict.handover,
        "starts": verdict.survives,
        "problems": [
            {
                "what": problem.what,
                "running": problem.running,
                "next": problem.next,
                "effect": problem.effect.name,
                "consequence": problem.consequence,
                "remedy": problem.remedy,
            }
            for problem in verdict.problems
        ],
    }
