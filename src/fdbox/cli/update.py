"""`fdbox update` and `fdbox abort`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.cli import images, lastupdate, layout, rehearsal, render
from fdbox.cli.command import command, connect, json_argument, socket_argument
from fdbox.errors import ConnectionLost

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from fdbox.linux.fd import OwnedFd
    from fdbox.varlink import interface


def _arguments(parser: argparse.ArgumentParser) -> None:
    socket_argument(parser)
    json_argument(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--kernel",
        metavar="IMAGE|VERSION",
        help="the next kernel: a path, or the version of one that is installed",
    )
    what.add_argument(
        "--reboot",
        action="store_true",
        help="no kexec: boxes cross as files over a reboot of the machine",
    )
    what.add_argument(
        "--last", action="store_true", help="tell how the last update went, and do nothing"
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
        "--rehearse",
        action="store_true",
        help="try it in QEMU first: the next kernel, its initrd, a small box and a copy of one of yours, which have to arrive",
    )
    parser.add_argument(
        "--carrier",
        choices=["image"],
        help="what takes boxes across: files, whatever the kernel could take (default: what is best for each entry)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on with a kernel that would lose what boxes hold; it is said what",
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
    "Replace the running kernel: inspect and load the next one, wait until every program is ready, seal all boxes, jump.\n"
    "Whatever fails on the way, and ^C, leaves every box open as it was. Exit status of --last: 0 if all is well.",
    example="fdbox update --kernel 7.3.4-amd64 --reuse-cmdline",
    arguments=_arguments,
)
def update(options: argparse.Namespace) -> int:
    """Update, showing how it goes; or tell how it went."""
    with ExitStack() as stack:
        if options.last:
            return lastupdate.tell(stack.enter_context(connect(options)), as_json=options.json)
        if options.rehearse and not options.reboot:
            rehearsal.rehearse(options)
        kernel, initrd = _images(options, stack)
        client = stack.enter_context(connect(options))
        steps = client.update(
            kernel,
            initrd,
            images.command_line(options),
            dry_run=options.dry_run,
            timeout=options.timeout,
            on_deadline="proceed" if options.proceed else "abort",
            on_late_write="abort" if options.abort_on_late_write else "retry",
            images_only=options.reboot or options.carrier == "image",
            force=options.force,
        )
        _watch(steps, stack, as_json=options.json)
        if options.dry_run and not options.json:
            print(layout.costs(client.predict()))
    return 0


def _images(options: argparse.Namespace, stack: ExitStack) -> tuple[OwnedFd | None, OwnedFd | None]:
    """Return the kernel and the initrd, opened."""
    if options.reboot:
        return None, None
    chosen = images.choose(options.kernel)
    initrd = options.initrd or chosen.initrd
    if chosen.installed and not options.json:
        print(f"kernel {chosen.path}, initrd {initrd or 'none'}", flush=True)
    opened = stack.enter_context(images.open_image(chosen.path))
    return opened, None if initrd is None else stack.enter_context(images.open_image(initrd))


def _watch(steps: Iterator[interface.UpdateReply], stack: ExitStack, *, as_json: bool) -> None:
    progress = render.Progress()
    stack.callback(progress.end)
    phase, loads, warnings = "", "", set[str]()
    try:
        for step in steps:
            phase = step.phase
            if as_json:
                print(render.as_json(step), flush=True)
                continue
            for warning in step.warnings:
                if warning not in warnings:
                    warnings.add(warning)
                    print(f"fdbox: warning: {render.plain(warning)}", file=sys.stderr, flush=True)
            if step.loads and (table := _loads(step.loads)) != loads:
                loads = table
                progress.end()
                print(table, flush=True)
            progress.show(_sentence(step))
    except ConnectionLost:
        # In the jump everything goes, this connection too.
        if phase != "committing":
            raise


def _loads(loads: Sequence[interface.Load]) -> str:
    rows = [
        (str(load.owner), load.box, load.carrier, str(load.entries), render.size(load.bytes))
        for load in loads
    ]
    return render.table(("USER", "BOX", "BY", "ENTRIES", "SIZE"), rows)


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
