"""What systemd is asked for; a script stands in its place."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from fdbox.errors import KernelError
from fdbox.nextkernel import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what makes `systemctl` a script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(script: str) -> None:
        path = tmp_path / "systemctl"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


@pytest.mark.parametrize("script", ["exit 0", "kill $$"])
def test_who_is_ended_by_a_reboot_waits_no_longer(
    script: str, systemctl: Callable[[str], None]
) -> None:
    """What ends the daemon may end systemctl before that has its answer."""
    systemctl(script)
    ended = threading.Event()
    ended.set()
    load._let_systemd("reboot", ended)


def test_a_job_that_systemd_refuses_is_none(systemctl: Callable[[str], None]) -> None:
    systemctl("echo it is not allowed >&2; exit 1")
    ended = threading.Event()
    ended.set()
    with pytest.raises(KernelError, match="it is not allowed"):
        load._let_systemd("reboot", ended)


def test_a_kernel_that_stays_is_told_of(
    systemctl: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl("exit 0")
    monkeypatch.setattr(load, "_PATIENCE", 0.0)
    with pytest.raises(KernelError, match="still runs"):
        load._let_systemd("kexec", threading.Event())
