"""`fdbox update` and `fdbox abort`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.cli import images, lastupdate, layout, rehearsal, render
from fdbox.cli.command import command, connect, json_argument, socket_argument
from fdbox.errors import ConnectionLost, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from fdbox.linux.fd import OwnedFd
    from fdbox.varlink import interface

#: the carrier to which it matters how memory lies
_KERNEL = "kernel"


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
        help="try it in QEMU before (after what --dry-run does): the next kernel, its initrd, a small box and a copy of one "
        "of yours, which have to arrive",
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
    _check_options(options)
    with ExitStack() as stack:
        if options.last:
            return lastupdate.tell(stack.enter_context(connect(options)), as_json=options.json)
        kernel, initrd = _images(options, stack)
        client = stack.enter_context(connect(options))
        watch = _Watch(as_json=options.json)
        stack.callback(watch.end)

        def go(*, dry_run: bool) -> None:
            watch.follow(
                client.update(
                    kernel,
                    initrd,
                    images.command_line(options),
                    dry_run=dry_run,
                    timeout=options.timeout,
                    on_deadline="proceed" if options.proceed else "abort",
                    on_late_write="abort" if options.abort_on_late_write else "retry",
                    images_only=options.reboot or options.carrier == "image",
                    force=options.force,
                )
            )

        if options.dry_run or options.rehearse:
            go(dry_run=True)  # what is refused at once is not rehearsed first
        if options.dry_run and watch.by_kernel and not options.json:
            print(layout.costs(client.predict()), flush=True)
        if options.rehearse:
            watch.end()
            rehearsal.rehearse(client, options)
        if not options.dry_run:
            go(dry_run=False)
    return 0


_OF_A_KERNEL: tuple[str, ...] = (
    "--initrd",
    "--append",
    "--reuse-cmdline",
    "--rehearse",
    "--carrier",
    "--force",
)
_OF_AN_UPDATE: tuple[str, ...] = ("--dry-run", "--timeout", "--proceed", "--abort-on-late-write")


def _check_options(options: argparse.Namespace) -> None:
    """Raise UsageError for what would be ignored."""
    ignored = _OF_A_KERNEL
    if options.last:
        what, ignored = "--last tells how it went", (*_OF_A_KERNEL, *_OF_AN_UPDATE)
    elif options.reboot:
        what = "--reboot loads no kernel, and all crosses as files"
    else:
        return
    values = vars(options)
    given = [flag for flag in ignored if _is_given(values[flag.strip("-").replace("-", "_")])]
    if given:
        raise UsageError(
            f"{what}: {', '.join(given)} would do nothing", remedy=f"leave out {', '.join(given)}"
        )


def _is_given(value: object) -> bool:
    return value is not None and value is not False and value != ""


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


class _Watch:
    """Shows how updates go, one after the other; nothing is said twice."""

    def __init__(self, *, as_json: bool) -> None:
        #: whether anything goes by the kernel, as far as was told
        self.by_kernel = False
        self._as_json = as_json
        self._progress = render.Progress()
        self._warnings: set[str] = set()
        self._loads = ""

    def end(self) -> None:
        """Leave the line of the progress."""
        self._progress.end()

    def follow(self, steps: Iterator[interface.UpdateReply]) -> None:
        """Show each step."""
        phase = ""
        try:
            for step in steps:
                phase = step.phase
                self.by_kernel |= any(load.carrier == _KERNEL for load in step.loads)
                if self._as_json:
                    print(render.as_json(step), flush=True)
                else:
                    self._show(step)
        except ConnectionLost:
            # In the jump everything goes, this connection too.
            if phase != "committing":
                raise

    def _show(self, step: interface.UpdateReply) -> None:
        for warning in step.warnings:
            if warning not in self._warnings:
                self._warnings.add(warning)
                print(f"fdbox: warning: {render.plain(warning)}", file=sys.stderr, flush=True)
        if step.loads and (table := _loads(step.loads)) != self._loads:
            self._loads = table
            self._progress.end()
            print(table, flush=True)
        self._progress.show(_sentence(step))


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
