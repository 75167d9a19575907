"""Every way in which two kernels do not fit, one by one; what each leads to was seen in a machine (docs of verdict.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fdbox.nextkernel.abi import Abi
from fdbox.nextkernel.configuration import Configuration, parse
from fdbox.nextkernel.inspect import KernelImage
from fdbox.nextkernel.running import Running, Written
from fdbox.nextkernel.verdict import Effect, by_files, judge
from tests.nextkernel import images

ON = "kho=on liveupdate=on"
CONFIG = parse(images.CONFIG, "the image")
SOURCE = "/proc/kcore"
NOW = Running(
    release=images.RELEASE,
    banner=images.BANNER,
    machine="x86_64",
    handover=True,
    liveupdate=True,
    kho=Written(("kho-v4",), SOURCE),
    luo=Written(("luo-v5",), SOURCE),
    memfd=Written(("memfd-v2",), SOURCE),
    others=Written((), SOURCE),
)
OURS = Abi(("kho-v4",), ("luo-v5",), ("memfd-v2",))
NEXT = KernelImage(
    path="/boot/vmlinuz",
    format="bzImage",
    machine="x86_64",
    compression="xz",
    release="7.3.5",
    banner=images.BANNER.replace("#1", "#2"),
    abi=OURS,
    configuration=CONFIG,
    signed=False,
    obstacles=(),
    memory=1 << 24,
    preferred_address=1 << 24,
)
UNKNOWN = Written()
NO_DEFAULT = Configuration("here", {"KEXEC_HANDOVER": "y"})
BUILT_IN_OFF = Configuration(
    "here", {"KEXEC_HANDOVER": "y", "CMDLINE_BOOL": "y", "CMDLINE": '"kho=off"'}
)


def said(line: str = ON, *, now: Running = NOW, **changes: Any) -> list[tuple[str, Effect]]:  # noqa: ANN401 - of a KernelImage
    """Return what is wrong with a next kernel that differs so."""
    verdict = judge(replace(NEXT, **changes), now, line)
    for problem in verdict.problems:
        assert problem.remedy
        assert problem.running in str(problem)
        assert problem.next in str(problem)
        assert problem.consequence in str(problem)
    return [(problem.what, problem.effect) for problem in verdict.problems]


def abi(**changes: tuple[str, ...]) -> Abi:
    return replace(OURS, **changes)


def now(**changes: Any) -> Running:  # noqa: ANN401 - of a Running
    return replace(NOW, **changes)


@pytest.mark.parametrize(
    "line", [ON, "liveupdate=1", "quiet kho=off kho=y liveupdate=on -- kho=off"]
)
def test_good(line: str) -> None:
    verdict = judge(NEXT, NOW, line)
    assert verdict.problems == ()
    assert verdict.handover
    assert verdict.survives is True


@pytest.mark.parametrize(
    ("changes", "line", "expected"),
    [
        # the formats
        ({"abi": abi(kho=("kho-v5",))}, ON, [("KHO format", Effect.LOST)]),
        ({"abi": abi(luo=("luo-v6",))}, ON, [("LUO format", Effect.PANICS)]),
        ({"abi": abi(memfd=("memfd-v3",))}, ON, [("memfd format", Effect.LOST)]),
        (  # KHO is not understood, so LUO is not asked
            {"abi": abi(kho=("kho-v5",), luo=("luo-v6",))},
            ON,
            [("KHO format", Effect.LOST), ("LUO format", Effect.LOST)],
        ),
        ({"abi": abi(kho=("kho-v3", "kho-v4"))}, ON, []),
        # not built in
        ({"abi": Abi()}, ON, [("KEXEC_HANDOVER", Effect.LOST)]),
        ({"abi": Abi(("kho-v4",))}, ON, [("LIVEUPDATE", Effect.LOST)]),
        ({"abi": abi(memfd=())}, ON, [("LIVEUPDATE_MEMFD", Effect.LOST)]),
        # the command line
        ({}, "kho=off liveupdate=on", [("kho=off", Effect.LOST)]),
        ({}, "kho=on liveupdate=0", [("liveupdate=off", Effect.LOST)]),
        ({}, "kho=on", [("liveupdate=on is missing", Effect.LOST)]),
        ({}, "kho=on liveupdate", [("liveupdate=on is missing", Effect.LOST)]),
        ({"configuration": NO_DEFAULT}, "liveupdate=on", [("kho=on is missing", Effect.LOST)]),
        ({"configuration": None}, "liveupdate=on", [("kho=on is missing", Effect.UNSURE)]),
        ({"configuration": None}, ON, []),
        ({"configuration": BUILT_IN_OFF}, "liveupdate=on", [("kho=off", Effect.LOST)]),
        ({"configuration": BUILT_IN_OFF}, ON, []),
        # what LUO's panic depends on
        (
            {"abi": abi(luo=("luo-v6",))},
            "kho=off liveupdate=on",
            [("LUO format", Effect.LOST), ("kho=off", Effect.LOST)],
        ),
        (
            {"abi": abi(luo=("luo-v6",))},
            "kho=on liveupdate=off",
            [("LUO format", Effect.PANICS), ("liveupdate=off", Effect.LOST)],
        ),
        (
            {"abi": abi(luo=("luo-v6",)), "configuration": NO_DEFAULT},
            "liveupdate=on",
            [("LUO format", Effect.LOST), ("kho=on is missing", Effect.LOST)],
        ),
        (
            {"abi": abi(luo=("luo-v6",)), "configuration": None},
            "liveupdate=on",
            [("LUO format", Effect.PANICS), ("kho=on is missing", Effect.UNSURE)],
        ),
        # the image
        ({"obstacles": ("it is a zImage",)}, ON, [("format", Effect.REFUSED)]),
        ({"machine": "aarch64"}, ON, [("machine", Effect.REFUSED)]),
        # what other kinds of file write
        ({"abi": abi(others=("vfio-v1",))}, ON, []),
    ],
)
def test_next(changes: dict[str, Any], line: str, expected: list[tuple[str, Effect]]) -> None:
    assert said(line, **changes) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"liveupdate": False}, [("live update is off", Effect.LOST)]),
        ({"luo": UNKNOWN}, [("LUO format", Effect.MAY_PANIC)]),
        ({"kho": UNKNOWN}, [("KHO format", Effect.UNSURE)]),
        ({"memfd": UNKNOWN}, [("memfd format", Effect.UNSURE)]),
        ({"kho": UNKNOWN, "liveupdate": False}, [("live update is off", Effect.LOST)]),
        ({"demands_signature": "lockdown=integrity"}, [("signature", Effect.REFUSED)]),
        ({"others": Written(("vfio-v1",), SOURCE)}, [("other files' formats", Effect.NOTE)]),
        ({"others": UNKNOWN}, []),
    ],
)
def test_running(changes: dict[str, Any], expected: list[tuple[str, Effect]]) -> None:
    assert said(now=now(**changes)) == expected


def test_signed() -> None:
    demanding = now(demands_signature="CONFIG_KEXEC_SIG_FORCE")
    assert said(now=demanding, signed=True) == []


def test_a_kernel_without_live_update_makes_no_next_one_panic() -> None:
    verdict = judge(replace(NEXT, abi=abi(luo=("luo-v6",))), now(liveupdate=False), ON)
    assert not verdict.handover
    assert verdict.survives is True


def test_the_same_build_writes_what_it_accepts() -> None:
    blind = now(kho=UNKNOWN, luo=UNKNOWN, memfd=UNKNOWN, others=UNKNOWN)
    assert len(said(now=blind)) == 3
    assert said(now=blind, banner=images.BANNER) == []
    wrong = said(now=now(memfd=UNKNOWN), banner=images.BANNER, abi=abi(luo=("luo-v6",)))
    assert wrong == [("LUO format", Effect.PANICS)], "what is known counts"


@pytest.mark.parametrize(
    ("effects", "handover", "survives"),
    [
        ({"abi": abi(luo=("luo-v6",))}, False, False),
        ({"machine": "aarch64"}, False, False),
        ({"abi": Abi()}, False, True),
    ],
)
def test_what_follows(effects: dict[str, Any], handover: bool, survives: bool) -> None:
    verdict = judge(replace(NEXT, **effects), NOW, ON)
    assert (verdict.handover, verdict.survives) == (handover, survives)


def test_not_known_whether_it_survives() -> None:
    verdict = judge(NEXT, now(luo=UNKNOWN), ON)
    assert (verdict.handover, verdict.survives) == (False, None)


def test_a_note_refuses_nothing() -> None:
    verdict = judge(NEXT, now(others=Written(("vfio-v1",), SOURCE)), ON)
    assert (verdict.handover, verdict.survives) == (True, True)


def test_what_crosses_as_files_all_the_same() -> None:
    without = replace(NEXT, abi=Abi())
    assert by_files(judge(NEXT, NOW, ON), NOW) == "", "they need not"
    assert "--carrier image" in by_files(judge(without, NOW, ON), NOW)
    off = now(liveupdate=False)
    assert "by itself" in by_files(judge(without, off, ON), off)
    for panics in (replace(NEXT, abi=abi(luo=("luo-v6",))), replace(NEXT, machine="aarch64")):
        assert by_files(judge(panics, NOW, ON), NOW) == "", "there will be no next kernel"


def test_a_running_kernel_that_is_not_built_for_it() -> None:
    for config, remedy in (
        (None, "boot the running kernel with kho=on liveupdate=on, if it is built for that"),
        (
            parse("CONFIG_KEXEC_HANDOVER=y\n", "here"),
            "run a kernel that is built with KEXEC_HANDOVER",
        ),
        (CONFIG, "boot the running kernel with kho=on"),
    ):
        (problem,) = judge(NEXT, now(liveupdate=False, configuration=config), ON).problems
        assert problem.what == "live update is off"
        assert problem.remedy.startswith(remedy)
        assert ("is built without live update" in problem.running) == ("run a" in remedy)


def test_both_sides_are_named() -> None:
    (problem,) = judge(replace(NEXT, abi=abi(luo=("luo-v6",))), NOW, ON).problems
    assert "writes luo-v5 (/proc/kcore)" in str(problem)
    assert "accepts luo-v6" in str(problem)
    assert "panics at boot" in problem.consequence
    (problem,) = judge(replace(NEXT, abi=Abi()), now(kho=UNKNOWN), ON).problems
    assert problem.running == "does not show what it writes"
