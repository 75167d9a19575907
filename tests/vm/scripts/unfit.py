#!/usr/bin/env python3
"""Next kernels that would lose what boxes hold: each is refused before anybody is told and before anything is sealed.

FDBOX_KERNELS has, by name, the path of each image.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import fdbox
from fdbox.errors import ConnectionLost, NextKernelUnfit

if TYPE_CHECKING:
    from fdbox.client.sync import Subscription

KERNELS = json.loads(os.environ["FDBOX_KERNELS"])
LINE = "console=ttyS0 panic=-1"
HANDS = "the running kernel hands sessions over"
ON = f"{LINE} kho=on liveupdate=on"


class Case(NamedTuple):
    """A jump that must not be made."""

    kernel: str
    append: str
    #: of this kernel, and of the next one
    said: tuple[str, str]


CASES = (
    Case("other-abi", ON, ("writes luo-v", "accepts luo-v9")),
    Case("no-liveupdate", ON, ("writes luo-v", "is built without CONFIG_LIVEUPDATE")),
    Case("stock", ON, ("writes kho-v", "is built without CONFIG_KEXEC_HANDOVER")),
    Case("default", f"{LINE} kho=off liveupdate=on", (HANDS, "has kho=off on its command line")),
    Case("default", f"{LINE} kho=on liveupdate=off", (HANDS, "has liveupdate=off on its")),
)


def update(kernel: str, append: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Ask for an update."""
    images = ["--kernel", KERNELS[kernel], "--initrd", "/run/vm/next-initrd"]
    return subprocess.run(
        ["fdbox", "update", *images, "--append", append, *more],
        capture_output=True,
        text=True,
        check=False,
    )


def check_untouched(client: fdbox.Client) -> None:
    """Check that boxes are open and as they were, and that no kernel waits."""
    assert {(box.name, box.state) for box in client.boxes()} == {("one", "open"), ("two", "open")}
    for name in ("one", "two"):
        assert client.box(name).memory("memory")[:3] == name.encode()
    assert client.status().phase == "idle"
    assert Path("/sys/kernel/kexec_loaded").read_text().strip() == "0"


def check_refused(client: fdbox.Client, case: Case) -> None:
    """Try it, with and without --dry-run."""
    for more in ([], ["--dry-run"]):
        done = update(case.kernel, case.append, *more)
        assert done.returncode == NextKernelUnfit.exit_status, (case, done)
        missing = [words for words in case.said if words not in done.stderr]
        assert not missing, (missing, done.stderr)
        check_untouched(client)
        print(f"{case.kernel}, {case.append} {' '.join(more)}: {done.stderr.strip()}")


def check_accepted(client: fdbox.Client, kernel: str) -> None:
    """See that a kernel is not refused."""
    done = update(kernel, ON, "--dry-run")
    assert done.returncode == 0, (kernel, done)
    check_untouched(client)
    print(f"{kernel}: {done.stdout.strip().splitlines()[-1:]}")


def listen(subscription: Subscription, heard: list[str]) -> None:
    """Note every event, to the end."""
    with contextlib.suppress(ConnectionLost):
        for event in subscription:
            heard.append(event.event)  # noqa: PERF401 - each is to be seen as it comes


def main() -> None:
    """Fill boxes, listen, and try."""
    daemon = subprocess.Popen(["fdbox", "serve"])
    while not Path("/run/fdbox/io.fdbox").exists():
        time.sleep(0.05)
    with fdbox.connect() as client, client.subscribe("listener") as subscription:
        heard: list[str] = []
        threading.Thread(target=listen, args=(subscription, heard), daemon=True).start()
        for name in ("one", "two"):
            client.box(name).memory("memory", size=1 << 20)[:3] = name.encode()
        for case in CASES:
            check_refused(client, case)
        for kernel in ("default", "older"):
            check_accepted(client, kernel)
        assert heard == []
        # It would have heard: of an update that is not refused, it does.
        assert update("default", ON, "--timeout", "1").returncode != 0
        assert heard == ["prepare", "aborted"]
        check_untouched(client)
    daemon.terminate()
    assert daemon.wait() == 0


main()
