from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fdbox.linux import privilege
from fdbox.model import Carriage
from fdbox.nextkernel.abi import Abi
from fdbox.nextkernel.configuration import Configuration
from fdbox.nextkernel.inspect import KernelImage
from fdbox.nextkernel.running import Running, Written
from fdbox.nextkernel.verdict import Effect, Problem
from fdbox.service.doctor import checks
from fdbox.service.doctor.checks import FILES, IMAGE, KERNEL, KEXEC, REBOOT, WAYS, Level
from fdbox.service.doctor.facts import Daemon, Facts, Next
from fdbox.varlink import interface
from fdbox.varlink.interface import StatusReply

MIB = 1 << 20
DOCS = Path(__file__).parents[2] / "docs/doctor.md"
BUILT = {"KEXEC_FILE": "y", "KEXEC_HANDOVER": "y", "LIVEUPDATE": "y", "LIVEUPDATE_MEMFD": "y"}


def config(**without: str) -> Configuration:
    return Configuration("/proc/config.gz", {**BUILT, **without})


def status(entries: int = 3) -> StatusReply:
    return StatusReply(
        version="1",
        incarnation="here",
        phase="idle",
        waiting=[],
        carrier="kernel",
        obstacle="",
        remedy="",
        boxes=1,
        entries=entries,
        arrived=0,
        lost=[],
    )


def daemon(boot: float = 0.1) -> Daemon:
    lies = interface.Layout(pages=2560, huge_pages=5, runs=5)
    prediction = interface.Prediction(
        box="",
        owner=0,
        layout=lies,
        preserve_seconds=0.1,
        boot_seconds=boot,
        retrieve_seconds=0.1,
    )
    return Daemon(status=status(), held=10 * MIB, prediction=prediction)


IMAGE_FILE = KernelImage(
    path="/boot/vmlinuz-next",
    format="bzImage",
    machine="x86_64",
    compression="gzip",
    release="7.3.4",
    banner="Linux version 7.3.4",
    abi=Abi(),
    configuration=None,
    signed=False,
    obstacles=(),
    memory=40 * MIB,
    preferred_address=0,
)
RUNNING = Running(
    release="7.3.4",
    banner="Linux version 7.3.4",
    machine="x86_64",
    handover=True,
    liveupdate=True,
    configuration=config(),
)
#: a machine on which all is well
GOOD = Facts(
    running=RUNNING,
    next=Next(image=IMAGE_FILE, initrd=20 * MIB, problems=()),
    kernel=Carriage("kernel"),
    load_disabled=0,
    load_limit=-1,
    lockdown="none",
    secure_boot=False,
    scratch=(64 * MIB, 64 * MIB),
    capabilities=frozenset(privilege.CAPABILITIES),
    in_initial_pid_namespace=True,
    descriptors=1 << 20,
    shmem_huge="advise",
    memfd_noexec=0,
    systemd=257,
    unit={
        "LoadState": "loaded",
        "FileDescriptorStoreMax": "18000",
        "FileDescriptorStorePreserve": "yes",
    },
    daemon=daemon(),
    image_directory=Path("/var/lib/fdbox"),
    images=Carriage("image"),
    images_free=100 * MIB,
    memory_free=1 << 32,
)


def unlike(**changes: Any) -> Facts:  # noqa: ANN401 - any fact
    return replace(GOOD, **changes)


def running(**changes: Any) -> Facts:  # noqa: ANN401 - any fact
    return unlike(running=replace(RUNNING, **changes))


def next_kernel(*problems: Problem, **changes: Any) -> Next:  # noqa: ANN401 - any fact
    return Next(image=replace(IMAGE_FILE, **changes), initrd=20 * MIB, problems=problems)


def problem(effect: Effect) -> Problem:
    return Problem("LUO format", "writes luo-v5", "accepts luo-v4", effect, "take another")


OFF = {"handover": False, "liveupdate": False}
CASES: list[tuple[str, Facts, Level, tuple[str, ...], str]] = [
    ("kexec-file", running(configuration=None), Level.UNKNOWN, (), "config"),
    ("kexec-file", running(configuration=config(KEXEC_FILE="n")), Level.OBSTACLE, KEXEC, "reboot"),
    ("handover", running(**OFF), Level.OBSTACLE, (KERNEL,), "kho=on"),
    ("handover", running(handover=None, liveupdate=False), Level.UNKNOWN, (), "root"),
    (
        "handover",
        running(handover=None, liveupdate=False, configuration=None, kho=Written(())),
        Level.OBSTACLE,
        (KERNEL,),
        "KEXEC_HANDOVER",
    ),
    ("kexec-file", unlike(kexec_file=False), Level.OBSTACLE, KEXEC, "reboot"),
    ("kexec-file", unlike(kexec_file=True), Level.OK, (), ""),
    (
        "handover",
        running(**OFF, configuration=config(KEXEC_HANDOVER="n")),
        Level.OBSTACLE,
        (KERNEL,),
        "KEXEC_HANDOVER",
    ),
    ("live-update", running(**OFF), Level.OBSTACLE, (KERNEL,), "liveupdate=on"),
    (
        "live-update",
        running(**OFF, configuration=config(LIVEUPDATE="n")),
        Level.OBSTACLE,
        (KERNEL,),
        "LIVEUPDATE",
    ),
    ("device", unlike(kernel=None), Level.UNKNOWN, (), "root"),
    (
        "device",
        unlike(kernel=Carriage(None, "it is busy", "end pid 7")),
        Level.OBSTACLE,
        (KERNEL,),
        "end pid 7",
    ),
    ("holders", unlike(holders=((7, "systemd"),)), Level.WARNING, (), "end it"),
    ("kexec-load-disabled", unlike(load_disabled=1), Level.OBSTACLE, KEXEC, "sysctl.d"),
    ("kexec-load-disabled", unlike(load_disabled=None), Level.UNKNOWN, (), "kexec"),
    ("kexec-load-limit", unlike(load_limit=1), Level.OBSTACLE, KEXEC, "reboot"),
    ("kexec-load-limit", unlike(load_limit=2), Level.WARNING, (), "dry runs"),
    (
        "signature",
        unlike(running=replace(RUNNING, demands_signature="lockdown=integrity")),
        Level.OBSTACLE,
        KEXEC,
        "sbsign",
    ),
    (
        "signature",
        unlike(running=replace(RUNNING, demands_signature="lockdown=integrity"), next=None),
        Level.WARNING,
        (),
        "--kernel",
    ),
    ("scratch", unlike(scratch=None), Level.UNKNOWN, (), "DEBUGFS"),
    ("scratch", unlike(scratch=(32 * MIB,)), Level.OBSTACLE, (KERNEL,), "kho_scratch="),
    (
        "capabilities",
        unlike(capabilities=frozenset({"CAP_CHOWN"})),
        Level.OBSTACLE,
        WAYS,
        "as root",
    ),
    (
        "capabilities",
        unlike(capabilities=frozenset({"CAP_SYS_BOOT"})),
        Level.WARNING,
        (),
        "as root",
    ),
    ("capabilities", unlike(capabilities=None), Level.UNKNOWN, (), "/proc"),
    ("namespace", unlike(in_initial_pid_namespace=False), Level.OBSTACLE, WAYS, "machine itself"),
    ("namespace", unlike(in_initial_pid_namespace=None), Level.UNKNOWN, (), "/proc"),
    ("descriptors", unlike(descriptors=1024), Level.WARNING, (), "34816"),
    ("huge-pages", unlike(shmem_huge="never"), Level.WARNING, (), "echo advise"),
    ("huge-pages", unlike(shmem_huge=None), Level.WARNING, (), "TRANSPARENT_HUGEPAGE"),
    ("memfd-noexec", unlike(memfd_noexec=1), Level.WARNING, (), "vm.memfd_noexec=0"),
    ("memory", unlike(memory_free=MIB), Level.WARNING, (), "free some"),
    ("systemd", unlike(systemd=252), Level.WARNING, (), "255"),
    ("systemd", unlike(systemd=254), Level.WARNING, (), "255"),
    ("unit", unlike(unit={"LoadState": "not-found"}), Level.WARNING, (), "systemd/fdbox.service"),
    (
        "unit",
        unlike(unit={**GOOD.unit, "FileDescriptorStorePreserve": "no"}),
        Level.WARNING,
        (),
        "yes",
    ),
    ("daemon", unlike(daemon=None), Level.WARNING, (), "fdbox serve"),
    ("scattered", unlike(daemon=daemon(boot=30.0)), Level.WARNING, (), "fdbox compact"),
    ("scattered", unlike(daemon=None), Level.UNKNOWN, (), "root"),
    (
        "images",
        unlike(images=Carriage(None, "it is in memory", "name another")),
        Level.OBSTACLE,
        FILES,
        "name another",
    ),
    ("image-room", unlike(images_free=MIB), Level.OBSTACLE, FILES, "[image] directory"),
    ("next-kernel", unlike(next=None), Level.UNKNOWN, (), "--kernel"),
    (
        "next-kernel",
        unlike(next=next_kernel(problem(Effect.LOST))),
        Level.OBSTACLE,
        (KERNEL,),
        "take another",
    ),
    (
        "next-kernel",
        unlike(next=next_kernel(problem(Effect.PANICS))),
        Level.OBSTACLE,
        KEXEC,
        "take another",
    ),
    ("next-kernel", unlike(next=next_kernel(problem(Effect.NOTE))), Level.OK, (), ""),
]


@pytest.mark.parametrize(
    ("check", "facts", "level", "blocks", "remedy"), CASES, ids=lambda value: str(value)[:20]
)
def test_each_check(
    check: str, facts: Facts, level: Level, blocks: tuple[str, ...], remedy: str
) -> None:
    said = checks.CHECKS[check](facts)
    assert (said.level, said.blocks) == (level, blocks)
    assert remedy in said.remedy


def test_every_check_can_say_more_than_that_all_is_well() -> None:
    assert {check for check, *_ in CASES} == set(checks.CHECKS)


def test_all_is_well() -> None:
    found = checks.judge(GOOD)
    assert {one.said.level for one in found} == {Level.OK}
    assert not any(one.said.remedy for one in found)
    assert checks.ways(found) == [KERNEL, IMAGE, REBOOT]


def test_only_obstacles_block_and_each_has_a_remedy() -> None:
    for _, facts, *_ in CASES:
        for one in checks.judge(facts):
            assert bool(one.said.blocks) == (one.said.level is Level.OBSTACLE)
            assert bool(one.said.remedy) == (one.said.level is not Level.OK)


def test_the_ways_that_are_left() -> None:
    assert checks.ways(checks.judge(running(**OFF))) == [IMAGE, REBOOT]
    assert checks.ways(checks.judge(unlike(load_disabled=1))) == [REBOOT]
    full = unlike(images_free=0)
    assert checks.ways(checks.judge(full)) == [KERNEL]
    assert checks.ways(checks.judge(unlike(capabilities=frozenset()))) == []


def test_every_check_is_in_the_docs() -> None:
    rows = [line.split("|")[1].strip() for line in DOCS.read_text().splitlines() if "|" in line]
    assert [row.strip("`") for row in rows if row.startswith("`")] == list(checks.CHECKS)


# --- real machines -----------------------------------------------------------------------------------------------------


def doctor(*wrapper: str) -> tuple[int, dict[str, Any]]:
    command = [*wrapper, sys.executable, "-m", "fdbox", "doctor", "--json", "--socket", "/none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    said = json.loads(done.stdout)
    levels = {one["check"]: one["level"] for one in said["findings"]}
    return done.returncode, {"ways": said["ways"], **levels}


def kernel_has_kexec_file() -> bool:
    """Ask the kernel itself: without the system call it says ENOSYS, with it that -1 is no descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(320, -1, -1, 0, None, 0) == -1  # kexec_file_load on x86_64
    return ctypes.get_errno() != errno.ENOSYS


@pytest.mark.root
def test_this_machine() -> None:
    status, said = doctor()
    assert status == (0 if said["ways"] else 1)
    assert said["namespace"] == "ok"
    assert said["capabilities"] == "ok"
    assert said["kexec-file"] == ("ok" if kernel_has_kexec_file() else "obstacle")
    there = os.path.exists("/dev/liveupdate")  # noqa: PTH110
    assert said["live-update"] == ("ok" if there else "obstacle")
    assert ("kernel" in said["ways"]) <= there
    assert said["daemon"] == "warning"


@pytest.mark.root
def test_a_container() -> None:
    status, said = doctor("unshare", "--pid", "--fork", "--mount-proc")
    assert (status, said["ways"], said["namespace"]) == (1, [], "obstacle")
    assert said["capabilities"] == "ok"


@pytest.mark.root
def test_without_capabilities() -> None:
    status, said = doctor("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    assert (status, said["ways"], said["capabilities"]) == (1, [], "obstacle")
    assert said["namespace"] == "ok"
