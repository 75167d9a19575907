from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fdbox.errors import ConfigurationError
from fdbox.linux import privilege
from fdbox.model import Carriage
from fdbox.nextkernel.abi import Abi
from fdbox.nextkernel.configuration import Configuration
from fdbox.nextkernel.inspect import KernelImage
from fdbox.nextkernel.running import Running, Written
from fdbox.nextkernel.verdict import Effect, Problem
from fdbox.service.doctor import checks
from fdbox.service.doctor.facts import Asked, Daemon, Facts, Next, Process
from fdbox.service.doctor.said import FILES, IMAGE, KERNEL, KEXEC, REBOOT, WAYS, Level
from fdbox.varlink import interface
from fdbox.varlink.interface import StatusReply

MIB = 1 << 20
DOCS = Path(__file__).parents[2] / "docs/doctor.md"
BUILT = {"KEXEC_FILE": "y", "KEXEC_HANDOVER": "y", "LIVEUPDATE": "y", "LIVEUPDATE_MEMFD": "y"}


def config(**without: str) -> Configuration:
    return Configuration("/proc/config.gz", {**BUILT, **without})


def status(entries: int = 3, *, kept: bool = True) -> StatusReply:
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
        kept=kept,
    )


def daemon(boot: float = 0.1, entries: int = 3, runs: int | None = 5) -> Daemon:
    lies = interface.Layout(pages=2560, huge_pages=5, runs=runs)
    prediction = interface.Prediction(
        box="",
        owner=0,
        layout=lies,
        preserve_seconds=0.1,
        boot_seconds=boot,
        retrieve_seconds=0.1,
    )
    return Daemon(status=status(entries), uid=0, pid=7, prediction=prediction)


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
SIGNED = replace(IMAGE_FILE, signed=True)
RUNNING = Running(
    release="7.3.4",
    banner="Linux version 7.3.4",
    machine="x86_64",
    handover=True,
    liveupdate=True,
    configuration=config(),
)
PROCESS = Process(
    who="fdbox (pid 7)",
    capabilities=frozenset(privilege.CAPABILITIES),
    pid_namespace=True,
    user_namespace=True,
    descriptors=1 << 20,
)
#: a machine on which all is well
GOOD = Facts(
    asked=Asked(image_directory=Path("/var/lib/fdbox"), daemon=daemon()),
    running=RUNNING,
    kho_said=True,
    luo_said=True,
    holders=(),
    next=Next(image=IMAGE_FILE, initrd=20 * MIB, problems=()),
    kernel=Carriage("kernel"),
    load_disabled=0,
    load_limit=-1,
    lockdown="none",
    secure_boot=False,
    scratch=(64 * MIB, 64 * MIB),
    process=PROCESS,
    descriptors_at_most=1 << 20,
    clock_error=0,
    version="1",
    shmem_huge="advise",
    memfd_noexec=0,
    systemd=257,
    unit={
        "LoadState": "loaded",
        "FileDescriptorStoreMax": "18000",
        "FileDescriptorStorePreserve": "yes",
        "LimitNOFILE": "34816",
        "DefaultDependencies": "no",
        "SurviveFinalKillSignal": "yes",
    },
    images=Carriage("image"),
    images_free=100 * MIB,
    memory_free=1 << 32,
)


def unlike(**changes: Any) -> Facts:  # noqa: ANN401 - any fact
    return replace(GOOD, **changes)


def asked(**changes: Any) -> Facts:  # noqa: ANN401 - anything named
    return unlike(asked=replace(GOOD.asked, **changes))


def process(**changes: Any) -> Facts:  # noqa: ANN401 - any fact
    return unlike(process=replace(PROCESS, **changes))


def has(*capabilities: str) -> Facts:
    return process(capabilities=frozenset(capabilities))


def unit(**changes: str) -> Facts:
    return unlike(unit={**GOOD.unit, **changes})


def running(**changes: Any) -> Facts:  # noqa: ANN401 - any fact
    return unlike(running=replace(RUNNING, **changes))


def next_kernel(*problems: Problem, **changes: Any) -> Next:  # noqa: ANN401 - any fact
    return Next(image=replace(IMAGE_FILE, **changes), initrd=20 * MIB, problems=problems)


def problem(effect: Effect) -> Problem:
    return Problem("LUO format", "writes luo-v5", "accepts luo-v4", effect, "take another")


OFF = {"handover": False, "liveupdate": False}
LOCKED = replace(RUNNING, demands_signature="lockdown=integrity")
MAY_BE_LOCKED = config(SECURITY_LOCKDOWN_LSM="y", KEXEC_SIG="y")
UNUSABLE = ConfigurationError("config.toml: quota is wrong", remedy="write it as it should be")
NO_WAY = ()
CASES: list[tuple[str, Facts, Level, tuple[str, ...], str]] = [
    ("proc", unlike(proc=False), Level.OBSTACLE, WAYS, "mount -t proc"),
    ("namespace", process(pid_namespace=False), Level.OBSTACLE, WAYS, "machine itself"),
    ("namespace", process(user_namespace=False), Level.OBSTACLE, WAYS, "machine itself"),
    ("namespace", process(pid_namespace=None), Level.UNKNOWN, NO_WAY, "/proc"),
    ("namespace", process(user_namespace=None), Level.UNKNOWN, NO_WAY, "as root"),
    ("capabilities", has("CAP_CHOWN"), Level.OBSTACLE, WAYS, "as root"),
    ("capabilities", has("CAP_SYS_BOOT"), Level.WARNING, NO_WAY, "as root"),
    ("capabilities", process(capabilities=None), Level.UNKNOWN, NO_WAY, "/proc"),
    ("configuration", asked(misconfigured=UNUSABLE), Level.WARNING, NO_WAY, "write it"),
    (
        "configuration",
        asked(misconfigured=UNUSABLE, daemon=None),
        Level.OBSTACLE,
        WAYS,
        "write it",
    ),
    ("kexec-file", running(configuration=None), Level.UNKNOWN, NO_WAY, "config"),
    ("kexec-file", running(configuration=config(KEXEC_FILE="n")), Level.OBSTACLE, KEXEC, "reboot"),
    ("kexec-file", unlike(kexec_file=False), Level.OBSTACLE, KEXEC, "reboot"),
    ("kexec-file", unlike(kexec_file=True), Level.OK, NO_WAY, ""),
    ("kexec-load-disabled", unlike(load_disabled=1), Level.OBSTACLE, KEXEC, "sysctl.d"),
    ("kexec-load-disabled", unlike(load_disabled=None), Level.UNKNOWN, NO_WAY, "kexec"),
    ("kexec-load-disabled", unlike(load_disabled=None, kexec_file=False), Level.OK, NO_WAY, ""),
    ("kexec-load-limit", unlike(load_limit=1), Level.OBSTACLE, KEXEC, "reboot"),
    ("kexec-load-limit", unlike(load_limit=2), Level.WARNING, NO_WAY, "dry runs"),
    ("signature", unlike(running=LOCKED), Level.OBSTACLE, KEXEC, "sbsign"),
    ("signature", unlike(running=LOCKED, next=None), Level.WARNING, NO_WAY, "--kernel"),
    (
        "signature",
        unlike(running=LOCKED, next=Next(image=SIGNED, initrd=0, problems=())),
        Level.OK,
        NO_WAY,
        "",
    ),
    (
        "signature",
        unlike(lockdown=None, running=replace(RUNNING, configuration=MAY_BE_LOCKED)),
        Level.UNKNOWN,
        NO_WAY,
        "mount -t securityfs",
    ),
    ("signature", unlike(lockdown=None), Level.OK, NO_WAY, ""),
    (
        "signature",
        unlike(lockdown=None, running=replace(RUNNING, configuration=None)),
        Level.UNKNOWN,
        NO_WAY,
        "securityfs",
    ),
    (
        "signature",
        unlike(appraised="appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig"),
        Level.WARNING,
        NO_WAY,
        "evmctl ima_sign",
    ),
    (
        "handover",
        replace(running(**OFF), kho_said=None),
        Level.OBSTACLE,
        (KERNEL,),
        "with kho=on",
    ),
    (
        "handover",
        replace(running(**OFF), kho_said=False),
        Level.OBSTACLE,
        (KERNEL,),
        "without it",
    ),
    ("handover", running(**OFF), Level.OBSTACLE, (KERNEL,), "dmesg"),
    ("handover", running(handover=None, liveupdate=False), Level.UNKNOWN, NO_WAY, "root"),
    (
        "handover",
        running(handover=None, liveupdate=False, configuration=None, kho=Written(())),
        Level.OBSTACLE,
        (KERNEL,),
        "KEXEC_HANDOVER",
    ),
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
        unlike(running=replace(RUNNING, liveupdate=False), luo_said=False),
        Level.OBSTACLE,
        (KERNEL,),
        "liveupdate=on",
    ),
    (
        "live-update",
        running(**OFF, configuration=config(LIVEUPDATE="n")),
        Level.OBSTACLE,
        (KERNEL,),
        "LIVEUPDATE",
    ),
    ("device", unlike(kernel=None), Level.OK, NO_WAY, ""),
    ("device", asked(daemon=None), Level.OK, NO_WAY, ""),
    (
        "device",
        unlike(kernel=None, asked=replace(GOOD.asked, daemon=None)),
        Level.UNKNOWN,
        NO_WAY,
        "root",
    ),
    (
        "device",
        unlike(kernel=Carriage(None, "it is busy", "end pid 7")),
        Level.OBSTACLE,
        (KERNEL,),
        "end pid 7",
    ),
    ("holders", unlike(holders=((7, "systemd"),)), Level.WARNING, NO_WAY, "end it"),
    ("holders", unlike(holders=None), Level.UNKNOWN, NO_WAY, "root"),
    ("holders", replace(running(**OFF), holders=None), Level.OK, NO_WAY, ""),
    ("scratch", unlike(scratch=None), Level.UNKNOWN, NO_WAY, "DEBUGFS"),
    (
        "scratch",
        unlike(scratch=None, running=replace(RUNNING, handover=None)),
        Level.UNKNOWN,
        NO_WAY,
        "root",
    ),
    ("scratch", unlike(scratch=(32 * MIB,)), Level.OBSTACLE, (KERNEL,), "kho_scratch="),
    ("scratch", unlike(next=None), Level.OK, NO_WAY, ""),
    ("descriptors", process(descriptors=1024), Level.WARNING, NO_WAY, "34816"),
    ("descriptors", process(descriptors=None), Level.UNKNOWN, NO_WAY, "/proc"),
    (
        "descriptors",
        unlike(process=replace(PROCESS, descriptors=1024), descriptors_at_most=1024),
        Level.WARNING,
        NO_WAY,
        "fs.nr_open=34816",
    ),
    (
        "descriptors",
        unlike(
            process=replace(PROCESS, descriptors=40_000),
            asked=replace(GOOD.asked, daemon=daemon(entries=30_000)),
        ),
        Level.WARNING,
        NO_WAY,
        "62048",
    ),
    ("kcmp", unlike(no_kcmp="it is forbidden"), Level.WARNING, NO_WAY, "CONFIG_KCMP"),
    ("huge-pages", unlike(shmem_huge="never"), Level.WARNING, NO_WAY, "echo advise"),
    ("huge-pages", unlike(shmem_huge=None), Level.WARNING, NO_WAY, "TRANSPARENT_HUGEPAGE"),
    ("memfd-noexec", unlike(memfd_noexec=1), Level.WARNING, NO_WAY, "vm.memfd_noexec=0"),
    ("clock", unlike(clock_error=None), Level.UNKNOWN, NO_WAY, "chrony"),
    ("clock", unlike(clock_error=-3600), Level.WARNING, NO_WAY, "hwclock"),
    ("memory", unlike(memory_free=MIB), Level.WARNING, NO_WAY, "free some"),
    ("memory", unlike(memory_free=None), Level.UNKNOWN, NO_WAY, "/proc"),
    ("systemd", unlike(systemd=252), Level.WARNING, NO_WAY, "255"),
    ("systemd", unlike(systemd=254), Level.WARNING, NO_WAY, "255"),
    (
        "unit",
        unlike(unit={"LoadState": "not-found"}),
        Level.WARNING,
        NO_WAY,
        "systemd/fdbox.service",
    ),
    ("unit", unit(FileDescriptorStorePreserve="no"), Level.WARNING, NO_WAY, "Preserve=yes"),
    ("unit", unit(FileDescriptorStoreMax="512"), Level.WARNING, NO_WAY, "StoreMax=18000"),
    ("unit", unit(LimitNOFILE="1024"), Level.WARNING, NO_WAY, "LimitNOFILE=34816"),
    ("unit", unit(LimitNOFILE="infinity"), Level.OK, NO_WAY, ""),
    ("unit", unit(DefaultDependencies="yes"), Level.WARNING, NO_WAY, "DefaultDependencies=no"),
    ("unit", unit(SurviveFinalKillSignal="no"), Level.WARNING, NO_WAY, "SurviveFinal"),
    (
        "unit",
        unlike(systemd=254, unit={**GOOD.unit, "SurviveFinalKillSignal": ""}),
        Level.OK,
        NO_WAY,
        "",
    ),
    ("unit", unlike(systemd=None, unit={}), Level.OK, NO_WAY, ""),
    ("daemon", asked(daemon=None), Level.WARNING, NO_WAY, "fdbox serve"),
    ("daemon", asked(daemon=None, silent="who listens"), Level.WARNING, NO_WAY, "end it"),
    (
        "daemon",
        asked(daemon=replace(daemon(), status=status(kept=False))),
        Level.WARNING,
        NO_WAY,
        "put everything in again",
    ),
    ("daemon", unlike(version="2"), Level.WARNING, NO_WAY, "fdbox reexec"),
    ("scattered", asked(daemon=daemon(boot=30.0)), Level.WARNING, NO_WAY, "fdbox compact"),
    ("scattered", asked(daemon=daemon(runs=None)), Level.OK, NO_WAY, ""),
    ("scattered", asked(daemon=None), Level.UNKNOWN, NO_WAY, "root"),
    (
        "images",
        unlike(images=Carriage(None, "it is in memory", "name another")),
        Level.OBSTACLE,
        FILES,
        "name another",
    ),
    ("images", unlike(images=None), Level.UNKNOWN, NO_WAY, "root"),
    ("images", unlike(images_may_be_in_memory=True), Level.UNKNOWN, NO_WAY, "on a disk"),
    ("image-room", unlike(images_free=MIB), Level.OBSTACLE, FILES, "[image] directory"),
    ("image-room", unlike(images=None), Level.UNKNOWN, NO_WAY, "root"),
    ("image-room", unlike(images_free=25 * MIB), Level.OBSTACLE, FILES, "free some"),
    ("image-room", unlike(images_free=26 * MIB), Level.OK, NO_WAY, ""),
    (
        "image-room",
        asked(daemon=replace(daemon(), prediction=None)),
        Level.UNKNOWN,
        NO_WAY,
        "root",
    ),
    (
        "image-room",
        unlike(images_free=0, asked=replace(GOOD.asked, daemon=None)),
        Level.OK,
        NO_WAY,
        "",
    ),
    ("next-kernel", unlike(next=None), Level.UNKNOWN, NO_WAY, "--kernel"),
    (
        "next-kernel",
        unlike(next=next_kernel(problem(Effect.LOST))),
        Level.OBSTACLE,
        (KERNEL,),
        "take another",
    ),
    (
        "next-kernel",
        unlike(next=next_kernel(problem(Effect.LOST))),
        Level.OBSTACLE,
        (KERNEL,),
        "can still cross as files: fdbox update --carrier image",
    ),
    (
        "next-kernel",
        replace(running(**OFF), next=next_kernel(problem(Effect.LOST))),
        Level.OBSTACLE,
        (KERNEL,),
        "can still cross as files: `fdbox update` chooses that here by itself",
    ),
    (
        "next-kernel",
        unlike(next=next_kernel(problem(Effect.PANICS))),
        Level.OBSTACLE,
        KEXEC,
        "take another",
    ),
    ("next-kernel", unlike(next=next_kernel(problem(Effect.NOTE))), Level.OK, NO_WAY, ""),
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
    assert checks.ways(checks.judge(has())) == []


def test_every_check_is_in_the_docs() -> None:
    rows = [line.split("|")[1].strip() for line in DOCS.read_text().splitlines() if "|" in line]
    assert [row.strip("`") for row in rows if row.startswith("`")] == list(checks.CHECKS)
