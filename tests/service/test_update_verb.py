"""`fdbox update` as the command line has it, against the whole daemon: only the carrier and the kernel are fakes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.cli import images, main, rehearsal
from fdbox.errors import KernelError, NextKernelUnfit, RehearsalFailed, UsageError
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.nextkernel.verdict import Effect, Problem
from tests.fakes.carrier import FakeKernel
from tests.service.daemon import Daemon

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fdbox.linux.fd import OwnedFd

    Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.root
FOREIGN = Problem(
    "machine", "is for x86_64", "is for aarch64", Effect.REFUSED, "take a kernel for this machine"
)


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "kernel"
    path.write_bytes(b"\0")
    return str(path)


@pytest.fixture
def update(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main.run(["update", *arguments, "--socket", str(daemon.socket)])
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def rehearsed(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Have no QEMU; return what the kernel had been told to do at each rehearsal."""
    seen: list[list[str]] = []

    def rehearse(_client: fdbox.Client, _options: argparse.Namespace) -> None:
        seen.append(list(daemon.kernel.calls))

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)
    return seen


# --- what comes first ------------------------------------------------------------------------------------------------


def test_a_rehearsal_comes_after_the_dry_run_and_before_the_update(
    daemon: Daemon, update: Run, kernel: str, rehearsed: list[list[str]]
) -> None:
    status, _, err = update("--kernel", kernel, "--rehearse")
    assert status == KernelError.exit_status
    assert "a test cannot jump" in err
    assert rehearsed == [["load", "unload"]]
    assert daemon.kernel.calls == ["load", "unload", "load", "load", "jump", "unload"]


def test_a_dry_run_with_a_rehearsal_ends_with_that(
    daemon: Daemon, update: Run, kernel: str, rehearsed: list[list[str]]
) -> None:
    assert update("--kernel", kernel, "--rehearse", "--dry-run")[0] == 0
    assert rehearsed == [["load", "unload"]]
    assert daemon.kernel.calls == ["load", "unload"]


def test_a_kernel_that_cannot_be_is_not_rehearsed(
    daemon: Daemon, update: Run, kernel: str, rehearsed: list[list[str]]
) -> None:
    daemon.kernel.problems = (FOREIGN,)
    status, _, err = update("--kernel", kernel, "--rehearse")
    assert status == NextKernelUnfit.exit_status
    assert "take a kernel for this machine" in err
    assert "--force" not in err, "nothing makes the running kernel load it"
    assert rehearsed == []
    assert daemon.kernel.calls == []


def test_what_fails_in_a_rehearsal_is_not_done(
    daemon: Daemon, update: Run, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rehearse(_client: fdbox.Client, _options: argparse.Namespace) -> None:
        raise RehearsalFailed("it did not come so far")

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)
    assert update("--kernel", kernel, "--rehearse")[0] == RehearsalFailed.exit_status
    assert daemon.kernel.calls == ["load", "unload"]


# --- what would be ignored -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["--reboot", "--last"])
@pytest.mark.parametrize(
    "ignored",
    [
        ["--rehearse"],
        ["--append", "quiet"],
        ["--reuse-cmdline"],
        ["--initrd", "/initrd"],
        ["--force"],
        ["--carrier", "image"],
    ],
)
def test_what_would_be_ignored_is_refused(
    daemon: Daemon, update: Run, what: str, ignored: list[str]
) -> None:
    status, _, err = update(what, *ignored)
    assert status == UsageError.exit_status
    assert f"{ignored[0]} would do nothing (leave out {ignored[0]})" in err
    assert daemon.kernel.calls == []


@pytest.mark.parametrize(
    "ignored", [["--dry-run"], ["--timeout", "0"], ["--proceed"], ["--abort-on-late-write"]]
)
def test_what_is_of_an_update_is_not_of_the_last(update: Run, ignored: list[str]) -> None:
    status, _, err = update("--last", *ignored)
    assert status == UsageError.exit_status
    assert ignored[0] in err


# --- what it will cost -----------------------------------------------------------------------------------------------


def test_a_dry_run_tells_what_the_kernel_takes_for_memory(
    client: fdbox.Client, memory: OwnedFd, update: Run, kernel: str
) -> None:
    client.box("cache").put("m", memory)
    status, out, _ = update("--kernel", kernel, "--dry-run")
    assert status == 0
    assert "PRESERVE" in out


@pytest.fixture
def by_files(socket_path: Path, tmp_path: Path) -> Iterator[Daemon]:
    """Return a daemon whose kernel carries nothing."""
    kernel = FakeKernel()
    made = Daemon(socket_path, ImageCarrier(tmp_path / "images", kernel), kernel)
    yield made
    made.stop()


def test_a_dry_run_of_files_tells_no_cost_of_the_kernel(
    by_files: Daemon, memory: OwnedFd, kernel: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with fdbox.connect(by_files.socket) as client:
        client.box("cache").put("m", memory)
    for options in (["--reboot"], ["--kernel", kernel], ["--kernel", kernel, "--carrier", "image"]):
        line = ["update", *options, "--dry-run", "--socket", str(by_files.socket)]
        assert main.run(line) == 0
        out = capfd.readouterr().out
        assert "image" in out
        assert "PRESERVE" not in out


# --- the next kernel, and its command line ---------------------------------------------------------------------------


def test_a_name_that_no_file_can_have_is_that_of_no_kernel(update: Run) -> None:
    status, _, err = update("--kernel", "x" * 300)
    assert status == UsageError.exit_status
    assert "no kernel xxx" in err


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        (
            b'BOOT_IMAGE=/v root=/dev/x dyndbg="file a  +p; initrd=z" quiet\n',
            'root=/dev/x dyndbg="file a  +p; initrd=z" quiet',
        ),
        (b'initrd=\\efi\\a "initrd=\\efi\\b c" "a  b" x\n', '"a  b" x'),
        (b"root=\xff\n", os.fsdecode(b"root=\xff")),
        (b"\n", ""),
    ],
)
def test_the_running_command_line_is_taken_as_it_is(
    running: bytes,
    expected: str,
    update: Run,
    tmp_path: Path,
    daemon: Daemon,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "_RUNNING", tmp_path / "cmdline")
    (tmp_path / "cmdline").write_bytes(running)
    (tmp_path / "kernel").write_bytes(b"\0")
    loaded = []

    def load(kernel: int, initrd: int | None, command_line: str) -> None:
        loaded.append(command_line)

    monkeypatch.setattr(daemon.kernel, "load", load)
    status, _, err = update("--kernel", str(tmp_path / "kernel"), "--reuse-cmdline", "--dry-run")
    if "\udcff" in expected:
        assert status == UsageError.exit_status
        assert "is no UTF-8" in err
    else:
        assert status == 0
        assert loaded == [expected]
