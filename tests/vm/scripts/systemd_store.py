#!/usr/bin/env python3
"""Whatever happens to fdbox.service, what it acknowledged is there afterwards, once, and PID 1 has a copy."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import fdbox
from fdbox.errors import ConnectionLost
from fdbox.linux import kcmp, memfd

ROUNDS = 5
#: puts between two blows, at least
LOAD = 20
TWINS = ("twin-1", "twin-2")


def systemctl(*words: str) -> str:
    """Return what systemctl says; CalledProcessError if it fails."""
    done = subprocess.run(["systemctl", *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def shown(name: str) -> int:
    """Return a property of the unit."""
    return int(systemctl("show", "--value", "-p", name, "fdbox"))


def until_changed(pid: int) -> None:
    """Return when another process than `pid` is the service, and answers."""
    deadline = time.monotonic() + 60
    while shown("MainPID") in (0, pid):
        assert time.monotonic() < deadline, systemctl("status", "fdbox")
    with fdbox.connect() as client:
        client.status()


def which(found: os.stat_result) -> tuple[int, int]:
    """Return which memory is behind a descriptor."""
    return found.st_dev, found.st_ino


class Load:
    """Puts memories into a box, one after the other, from a thread of its own, until it is stopped."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, tuple[int, int]] = {}
        self.unknown: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def go_on(self) -> None:
        """Return when some more were acknowledged."""
        wanted = len(self.acknowledged) + LOAD
        while len(self.acknowledged) < wanted and self._thread.is_alive():
            time.sleep(0.01)
        assert self._thread.is_alive(), "a put failed with another error than the reconnect"

    def _run(self) -> None:
        with fdbox.connect() as client:
            box = client.box("load")
            for number in itertools.count():
                name = f"memory-{number}"
                with memfd.create(name, 4096) as fd:
                    try:
                        box.put(name, fd)
                        self.acknowledged[name] = which(os.fstat(fd.fileno()))
                    except ConnectionLost:
                        self.unknown.add(name)
                if self._stop.is_set():
                    return


def check(load: Load) -> None:
    """Compare what is there, and what PID 1 holds, with what was acknowledged."""
    with fdbox.connect() as client:
        assert not client.status().lost, client.status().lost
        box = client.existing_box("load")
        names = [entry.name for entry in box.list()]
        assert len(names) == len(set(names))
        missing = load.acknowledged.keys() - names
        assert not missing, f"lost: {sorted(missing)}"
        assert set(names) <= load.acknowledged.keys() | load.unknown
        there = {}
        wanted = list(load.acknowledged)
        for start in range(0, len(wanted), 250):  # this process may have 1,024
            for name, fd in box.get_many(wanted[start : start + 250]).items():
                with fd:
                    there[name] = which(os.fstat(fd.fileno()))
    assert there == load.acknowledged
    held = Counter(which(path.stat()) for path in Path("/proc/1/fd").iterdir() if path.exists())
    wrong = {name: held[memory] for name, memory in there.items() if held[memory] != 1}
    assert not wrong, f"copies that PID 1 has: {wrong}"
    print(
        f"{len(there)} acknowledged and there; {len(names) - len(there)} others; "
        f"{shown('NFileDescriptorStore')} in the store; {shown('NRestarts')} restarts"
    )


def check_twins(names: tuple[str, ...]) -> None:
    """Check that the box has these names for one open file, and no other."""
    with fdbox.connect() as client:
        box = client.existing_box("twins")
        assert [entry.name for entry in box.list()] == list(names)
        fds = list(box.get_many(names).values())
        assert all(kcmp.same_file(fds[0].fileno(), fd.fileno()) for fd in fds)
        for fd in fds:
            assert os.pread(fd.fileno(), 6, 0) == b"shared"
            fd.close()


def kill() -> float:
    """Kill the service; return the seconds until it answers again."""
    pid = shown("MainPID")
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    until_changed(pid)
    return time.monotonic() - begun


def check_kill() -> None:
    """SIGKILL, under load; and one open file under two names."""
    with fdbox.connect() as client, memfd.create("twins") as fd:
        os.write(fd.fileno(), b"shared")
        client.box("twins").put_many(dict.fromkeys(TWINS, fd))
    gaps = []
    with Load() as load:
        for _ in range(ROUNDS):
            load.go_on()
            gaps.append(kill())
    print("seconds without service:", " ".join(f"{gap:.1f}" for gap in gaps))
    check(load)
    check_twins(TWINS)
    with fdbox.connect() as client:
        client.existing_box("twins").remove(TWINS[0])
    check_twins(TWINS[1:])
    kill()
    check_twins(TWINS[1:])
    check(load)


def check_reload() -> None:
    """`systemctl reload`, under load: the same process, another program."""
    pid = shown("MainPID")
    with Load() as load:
        for _ in range(ROUNDS):
            load.go_on()
            begun = time.monotonic()
            systemctl("reload", "fdbox")
            print(f"reload: {time.monotonic() - begun:.1f} s")
    check(load)
    assert (shown("MainPID"), shown("NRestarts")) == (pid, 0)


def check_stop() -> None:
    """`systemctl stop`, and start; PID 1 itself replaced; and all over."""
    with Load() as load:
        load.go_on()
    for _ in range(2):
        systemctl("stop", "fdbox")
        assert shown("MainPID") == 0
        print(f"stopped: {shown('NFileDescriptorStore')} in the store")
        systemctl("start", "fdbox")
        check(load)
        systemctl("daemon-reexec")


{"kill": check_kill, "reload": check_reload, "stop": check_stop}[os.environ["FDBOX_CHECK"]]()
