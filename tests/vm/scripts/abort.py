#!/usr/bin/env python3
"""Seal, then unseal: the kernel is as before, the originals work, and what was saved cannot be loaded here."""

from __future__ import annotations

import array
import faulthandler
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import fdbox
from fdbox.errors import SameIncarnation
from fdbox.handover import arrive, seal
from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.linux import memfd, pagemap
from fdbox.model import BoxKey, Description
from fdbox.nextkernel.load import RunningKernel

if TYPE_CHECKING:
    from fdbox.linux.fd import OwnedFd

SIZE = 64 << 20


def pins() -> int:
    """Return how many page references are held for others (long-term pins)."""
    Path("/proc/sys/vm/stat_refresh").write_text("1")  # each CPU keeps its own share for a while
    found = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(found["nr_foll_pin_acquired"]) - int(found["nr_foll_pin_released"])


def counts(frames: list[int]) -> list[int]:
    """Return /proc/kpagecount of the frames."""
    with Path("/proc/kpagecount").open("rb", buffering=0) as file:
        return [array.array("Q", os.pread(file.fileno(), 8, frame * 8))[0] for frame in frames]


def check_in_place() -> None:
    """Seal and unseal through the daemon."""
    with fdbox.connect() as client:
        box = client.box("cache")
        memory = box.memory("index", size=SIZE)
        memory[:] = os.urandom(1 << 20) * (SIZE >> 20)
        box.seal()  # the first time pages may have to move
        box.unseal()
        before = memory[:]
        frames, pinned = pagemap.frames(memory, SIZE), pins()
        counted = counts(frames[::64])
        box.seal()
        during = pins() - pinned
        assert during > 0, "sealing pins every page"
        assert box.list()[0].carrier == "kernel"
        try:
            box.remove("index")
        except fdbox.BoxSealed as error:
            print("refused while sealed:", error)
        memory[:7] = b"late on"  # writes go on
        box.unseal()
        deadline = time.monotonic() + 10
        while pins() != pinned and time.monotonic() < deadline:
            time.sleep(0.05)
        assert pins() == pinned, (pins(), pinned)
        assert pagemap.frames(memory, SIZE) == frames
        assert counts(frames[::64]) == counted
        assert memory[7:] == before[7:]
        memory[:7] = before[:7]
        os.ftruncate(memory.fileno(), SIZE + 4096)  # the original takes everything again
        print(
            f"{during} pins while sealed, {pins() - pinned} after; {len(frames)} frames and their counts as before"
        )


def check_abort_of_update() -> None:
    """Call an update off while it waits for a subscriber, and once more by its deadline."""
    images = ["--kernel", "/run/vm/next-kernel", "--initrd", "/run/vm/next-initrd"]
    images += ["--append", "kho=on liveupdate=on"]  # without it, the next kernel would be refused
    with fdbox.connect() as client, client.subscribe("slow program") as subscription:
        pinned = pins()
        update = subprocess.Popen(["fdbox", "update", *images], stderr=subprocess.PIPE, text=True)
        events = iter(subscription)
        assert next(events).event == "prepare"
        while client.status().waiting != ["slow program"]:
            time.sleep(0.05)
        subprocess.run(["fdbox", "abort"], check=True)
        assert next(events).event == "aborted"
        _, said = update.communicate()
        print("update said:", said.strip().splitlines()[-1])
        assert update.returncode == 27
        late = subprocess.run(
            ["fdbox", "update", *images, "--timeout", "1"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert late.returncode == 27
        assert "slow program" in late.stderr
        status = client.status()
        assert status.phase == "idle"
        assert {box.state for box in client.boxes()} == {"open"}
        assert pins() == pinned
        assert Path("/sys/kernel/kexec_loaded").read_text().strip() == "0"


class _Again:
    """A delivery of what was just shipped, as if it had come from another kernel."""

    def __init__(self, sealed: seal.SealedBox) -> None:
        self._parcels = {parcel.token: parcel.fd for parcel in sealed.freight.parcels}
        self._parcels[0] = sealed.manifest.fileno()

    def fileno(self) -> int:
        raise AssertionError("nothing came")

    def take(self, token: int) -> OwnedFd:
        return memfd.reopen(self._parcels[token], os.O_RDWR)

    def stream(self, token: int) -> None:
        raise AssertionError("nothing was sent as a stream")

    def finish(self, *, whole: bool = True) -> None:
        raise AssertionError("nothing was loaded")

    def abandon(self) -> None:
        raise AssertionError("nothing came")


def check_same_incarnation() -> None:
    """Try to load what this very kernel has saved."""
    carrier, kernel = KernelCarrier(), RunningKernel()
    with memfd.create("m", 4096) as fd:
        entries = {"m": (fd.fileno(), Description("memfd", 4096, "m"))}
        sealed = seal.seal(BoxKey(0, "b"), entries, carrier, kernel)
        try:
            arrive.load_box(_Again(sealed), kernel)
        except SameIncarnation as error:
            print("refused:", error)
        else:
            raise AssertionError("it was loaded where it was saved")
        finally:
            sealed.thaw()


faulthandler.dump_traceback_later(60)
daemon = subprocess.Popen(["fdbox", "serve"])
while not Path("/run/fdbox/io.fdbox").exists():
    time.sleep(0.05)
check_in_place()
check_same_incarnation()
check_abort_of_update()
daemon.terminate()
assert daemon.wait() == 0
