"""`fdbox update` and `fdbox abort`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.cli import images, render
from fdbox.cli.command import command, connect, json_argument, socket_argument
from fdbox.errors import ConnectionLost

if TYPE_CHECKING:
    import argparse

    from fdbox.varlink import interface


def _arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)
    parser.add_argument(
        "--kernel",
        required=True,
        metavar="IMAGE|VERSION",
        help="the next kernel: a path, or the version of one that is installed",
    )
    parser.add_argument(
        "--initrd",
        type=Path,
        metavar="IMAGE",
        help="its initial file system (default with a version: the one installed with it)",
    )
    images.line_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="load the kernel and take it back, check that every entry can be carried, and touch nothing",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="seconds that programs have to become ready"
    )
    parser.add_argument(
        "--proceed", action="store_true", help="go on without those who are not ready in time"
    )
    parser.add_argument(
        "--abort-on-late-write",
        action="store_true",
        help="abort when something was changed after it was saved, rather than save its box again",
    )


@command(
    "update",
    "Replace the running kernel: load the next one, wait until every program is ready, seal all boxes, jump.\n"
    "Whatever fails on the way, and ^C, leaves every box open as it was.",
    example="fdbox update --kernel /boot/vmlinuz-NEW --initrd /boot/initrd.img-NEW --reuse-cmdline",
    arguments=_arguments,
)
def update(options: argparse.Namespace) -> None:
    """Update, showing how it goes."""
    chosen = images.choose(options.kernel)
    initrd_path = options.initrd or chosen.initrd
    if chosen.installed and not options.json:
        print(f"kernel {chosen.path}, initrd {initrd_path or 'none'}", flush=True)
    with ExitStack() as stack:
        kernel = stack.enter_context(images.open_image(chosen.path))
        initrd = (
            None if initrd_path is None else stack.enter_context(images.open_image(initrd_path))
        )
        client = stack.enter_context(connect(options))
        steps = client.update(
            kernel,
            initrd,
            images.command_line(options),
            dry_run=options.dry_run,
            timeout=options.timeout,
            on_deadline="proceed" if options.proceed else "abort",
            on_late_write="abort" if options.abort_on_late_write else "retry",
        )
        progress = render.Progress()
        stack.callback(progress.end)
        phase = ""
        try:
            for step in steps:
                phase = step.phase
                if options.json:
                    print(render.as_json(step), flush=True)
                else:
                    progress.show(_sentence(step))
        except ConnectionLost:
            # In the jump everything goes, this connection too.
            if phase != "committing":
                raise


def _sentence(step: interface.UpdateReply) -> str:
    if step.waiting:
        return f"{step.phase}: waiting for {', '.join(step.waiting)}"
    return f"{step.phase}: {step.detail}" if step.detail else step.phase


def _abort_arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)


@command(
    "abort",
    "Call the update off. Every box is open again as it was.",
    example="fdbox abort",
    arguments=_abort_arguments,
)
def abort(options: argparse.Namespace) -> None:
    """Abort."""
    with connect(options) as client:
        client.abort_update()
