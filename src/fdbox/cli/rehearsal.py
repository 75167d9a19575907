"""`fdbox update --rehearse`."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from fdbox.cli import images, render
from fdbox.errors import FdboxError
from fdbox.handover.carriers import single
from fdbox.nextkernel.running import running, running_image
from fdbox.service.rehearsal import qemu

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from fdbox.client.sync import Client

#: bytes of a box that is copied
_SMALL = 64 << 20
_NETWORK = {"tcp-socket", "udp-socket"}


def rehearse(client: Client, options: argparse.Namespace) -> None:
    """Try the jump in QEMU; RehearsalFailed if it does not come to its end."""
    chosen = images.choose(options.kernel)
    line = images.command_line(options)
    initrd = options.initrd or chosen.initrd
    progress = render.Progress()
    copy = copy_a_box(client, progress.show)
    plan = qemu.Plan(chosen.path, initrd, line, _leaving(options), copy)
    qemu.rehearse(plan, progress.show)
    progress.end()


def copy_a_box(client: Client, say: Callable[[str], None]) -> qemu.Copy | None:
    """Return a copy of the smallest box of which one can be made; there is no network where it goes."""
    found = []
    for box in client.boxes():
        entries = client.existing_box(box.name, box.owner).list()
        size = sum(entry.size or 0 for entry in entries)
        kinds = {entry.kind for entry in entries}
        if (
            box.state == "open"
            and entries
            and size <= _SMALL
            and kinds <= single.PORTABLE - _NETWORK
        ):
            found.append((size, box, tuple(entry.name for entry in entries)))
    for _, box, names in sorted(found, key=lambda one: one[0]):
        try:
            with tempfile.TemporaryFile(prefix="fdbox-rehearsal-") as file:
                client.existing_box(box.name, box.owner).export(file)
                say(
                    f"box {render.plain(box.name)} of user {box.owner} is copied, and rehearsed with"
                )
                return qemu.Copy(names, file.read())
        except FdboxError as error:
            say(f"box {render.plain(box.name)} cannot be copied: {render.plain(error.message)}")
    return None


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
    return image, images.running_line()
