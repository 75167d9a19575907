"""`fdbox update --rehearse`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.cli import images, render
from fdbox.nextkernel.running import running, running_image
from fdbox.service.rehearsal import qemu

if TYPE_CHECKING:
    import argparse


def rehearse(options: argparse.Namespace) -> None:
    """Try the jump in QEMU; RehearsalFailed if it does not come to its end."""
    chosen = images.choose(options.kernel)
    line = images.command_line(options)
    plan = qemu.Plan(chosen.path, options.initrd or chosen.initrd, line, _leaving(options))
    progress = render.Progress()
    qemu.rehearse(plan, progress.show)
    progress.end()


def _leaving(options: argparse.Namespace) -> tuple[Path, str] | None:
    """Return the running kernel's image and command line, if boxes would cross by it."""
    if options.carrier == "image" or not running().liveupdate:
        return None
    image = running_image()
    if image is None:
        render.Progress().show(
            "the running kernel's own image was not found: the kexec from it is not rehearsed"
        )
        return None
    return image, Path("/proc/cmdline").read_text(encoding="utf-8").strip()
