"""`fdbox doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import fdbox
from fdbox.address import SYSTEM_SOCKET, default_socket
from fdbox.cli import images, render
from fdbox.cli.command import command, json_argument, socket_argument
from fdbox.errors import ConfigurationError, ConnectionLost, FdboxError, ProtocolError, UsageError
from fdbox.linux import peer
from fdbox.nextkernel.find import installed
from fdbox.nextkernel.inspect import inspect
from fdbox.service import config as configuration
from fdbox.service.doctor import checks, said
from fdbox.service.doctor.facts import Asked, Daemon
from fdbox.service.doctor.gather import gather
from fdbox.service.doctor.said import Level
from fdbox.varlink import interface, wire
from fdbox.varlink.dispatch import SERVICE

if TYPE_CHECKING:
    import argparse

    from fdbox.nextkernel.inspect import KernelImage
    from fdbox.service.doctor.checks import Finding

    Chosen = tuple[KernelImage, int, str]

#: what an exit status of 1 means here is documented: not ready
_READY, _NOT_READY = 0, 1
_SAID = {
    said.KERNEL: "by the kernel, over a kexec: memory stays where it is",
    said.IMAGE: "as files, over a kexec",
    said.REBOOT: "as files, over a reboot (fdbox update --reboot)",
}
#: what a connection says that is taken, and not answered; or not even taken, for too many wait already (EAGAIN)
_SILENT = (TimeoutError, BlockingIOError, ConnectionResetError, BrokenPipeError)
_ORDER = (Level.OBSTACLE, Level.UNKNOWN, Level.WARNING, Level.OK)


def _arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)
    parser.add_argument(
        "--kernel",
        metavar="IMAGE|VERSION",
        help="the next kernel (default: the newest installed, with the running one's command line)",
    )
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
    found = checks.judge(gather(_asked(options)))
    ways = checks.ways(found)
    if options.json:
        print(render.as_json({"ways": ways, "findings": [_document(one) for one in found]}))
    else:
        print(_text(found, ways))
    return _READY if ways else _NOT_READY


def _asked(options: argparse.Namespace) -> Asked:
    daemon, silent = _daemon(options.socket)
    directory, misconfigured = _image_directory(options.config, daemon)
    chosen, why = _next(options)
    return Asked(
        image_directory=directory,
        daemon=daemon,
        silent=silent,
        chosen=chosen,
        not_chosen=why,
        misconfigured=misconfigured,
    )


def _image_directory(
    path: Path | None, daemon: Daemon | None
) -> tuple[Path | None, ConfigurationError | None]:
    """Return where the daemon's images are, as it says itself, and what is wrong with its configuration."""
    directory, misconfigured = _configured(path, daemon)
    told = "" if daemon is None else daemon.status.images
    return Path(told) if told else directory, misconfigured


def _configured(
    path: Path | None, daemon: Daemon | None
) -> tuple[Path | None, ConfigurationError | None]:
    """Return where the configuration has the images, and what is wrong with it."""
    of_the_machine = daemon is not None and daemon.uid == 0 and os.geteuid() != 0
    if path is None and of_the_machine and configuration.SYSTEM_PATH.exists():
        path = configuration.SYSTEM_PATH
    try:
        settings = configuration.load(path).image
        if of_the_machine and not settings.directory:
            return configuration.SYSTEM_IMAGES, None
        return configuration.image_directory(settings), None
    except ConfigurationError as error:
        return None, error


# --- the daemon ------------------------------------------------------------------------------------------------------


def _daemon(named: Path | None) -> tuple[Daemon | None, str]:
    """Return the daemon that is named, or this user's, or the machine's; and who is there instead and does not answer.

    Who has never answered is not asked for more: only the first question has an end to its patience.
    """
    question = wire.encode_call(f"{SERVICE}.GetInfo", interface.Nothing())
    for path in [named] if named else _sockets():
        try:
            who = peer.answerer(path, question)
        except _SILENT:
            return None, f"who listens at {path} does not answer"
        except OSError:  # nobody listens, or not to us
            continue
        try:
            with fdbox.connect(path) as client:
                return _look_at(client, who), ""
        except (ConnectionLost, OSError):
            continue
        except ProtocolError as error:
            return None, f"who answers at {path} is no fdbox: {error.message}"
    return None, ""


def _sockets() -> list[Path]:
    try:
        own = default_socket()
    except UsageError:  # this user has no place for one
        return [SYSTEM_SOCKET]
    return [own] if own == SYSTEM_SOCKET or "FDBOX_SOCKET" in os.environ else [own, SYSTEM_SOCKET]


def _look_at(client: fdbox.Client, who: peer.Credentials) -> Daemon:
    status = client.status()
    try:
        prediction = client.predict().total if os.geteuid() == 0 else None
    except FdboxError:  # an older one cannot
        prediction = None
    return Daemon(status=status, uid=who.uid, pid=who.pid, prediction=prediction)


# --- the next kernel -------------------------------------------------------------------------------------------------


def _next(options: argparse.Namespace) -> tuple[Chosen | None, str]:
    """Return the next kernel; or the newest one that is installed, and if that cannot be looked at, why.

    What was named must be there: UsageError.
    """
    if options.initrd is not None:
        images.size(options.initrd)
    if options.kernel is not None:
        return _chosen(images.choose(options.kernel), options), ""
    newest = next(iter(installed()), None)
    if newest is None:
        return None, ""
    options.reuse_cmdline = options.reuse_cmdline or not options.append
    try:
        return _chosen(images.Chosen(newest.image, newest), options), ""
    except (FdboxError, OSError) as error:
        return None, str(error)


def _chosen(chosen: images.Chosen, options: argparse.Namespace) -> Chosen:
    initrd = options.initrd or chosen.initrd
    with images.open_image(chosen.path) as file:
        image = inspect(file.fileno())
    return image, 0 if initrd is None else images.size(initrd), images.command_line(options)


# --- what is shown ---------------------------------------------------------------------------------------------------


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
    unseen = any(one.said.level is Level.UNKNOWN for one in found)
    start = "as far as this user may see, boxes" if unseen else "boxes"
    lines += [f"{start} would cross {_SAID[way]}" for way in ways]
    if not ways:
        lines.append("nothing would cross: see the obstacles")
    return "\n".join(lines)
