from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fdbox.linux import privilege

if TYPE_CHECKING:
    from pathlib import Path

EFI = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
SECURITY = "sys/kernel/security"


def write(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def test_this_process() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert privilege.file_limit() == privilege.file_limit(os.getpid()) == hard
    assert privilege.in_initial_namespace("pid") is not None
    assert (privilege.capabilities() or frozenset()) <= set(privilege.CAPABILITIES)


@pytest.mark.root
def test_another_process() -> None:
    wrapper = ["setpriv", "--bounding-set=-net_admin", "unshare", "--user", "--fork"]
    command = [*wrapper, sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        assert privilege.in_initial_namespace("user", other.pid) is False
        assert privilege.in_initial_namespace("pid", other.pid) is True
        assert privilege.file_limit(other.pid) == privilege.file_limit()
        other.stdin.close()


def test_a_process_that_is_no_more() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert privilege.capabilities(gone.pid) is None
    assert privilege.file_limit(gone.pid) is None
    assert privilege.in_initial_namespace("pid", gone.pid) is None


def test_a_kernel_without_namespaces_has_the_initial_ones(tmp_path: Path) -> None:
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    assert privilege.in_initial_namespace("user", root=tmp_path) is True


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("Name:\tx\nCapEff:\t0000000000400000\n", {"CAP_SYS_BOOT"}),
        ("CapEff:\t0000000000001001\n", {"CAP_CHOWN", "CAP_NET_ADMIN"}),
        ("CapEff:\t0000000000000000\n", set()),
        ("Name:\tx\n", None),
    ],
)
def test_capabilities(tmp_path: Path, text: str, has: set[str] | None) -> None:
    write(tmp_path, "proc/self/status", text.encode())
    assert privilege.capabilities(root=tmp_path) == has


@pytest.mark.parametrize(
    ("content", "on"), [(b"\6\0\0\0\1", True), (b"\6\0\0\0\0", False), (None, None)]
)
def test_secure_boot(tmp_path: Path, content: bytes | None, on: bool | None) -> None:
    if content is not None:
        write(tmp_path, EFI, content)
    assert privilege.secure_boot(tmp_path) is on


def test_lockdown(tmp_path: Path) -> None:
    assert privilege.lockdown(tmp_path) is None
    write(tmp_path, f"{SECURITY}/lockdown", b"none [integrity] confidentiality\n")
    assert privilege.lockdown(tmp_path) == "integrity"


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (None, None),
        (b"measure func=KEXEC_KERNEL_CHECK\nappraise func=MODULE_CHECK\n", None),
        (
            b"dont_appraise fsmagic=0x9fa0\nappraise  func=KEXEC_KERNEL_CHECK appraise_type=imasig\n",
            "appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig",
        ),
    ],
)
def test_what_ima_does_with_kernels(tmp_path: Path, policy: bytes | None, rule: str | None) -> None:
    if policy is not None:
        write(tmp_path, f"{SECURITY}/ima/policy", policy)
    assert privilege.appraised_kernels(tmp_path) == rule


def test_numbers_and_choices(tmp_path: Path) -> None:
    write(tmp_path, "number", b"0x10\n")
    write(tmp_path, "choice", b"always within_size [advise] never\n")
    assert privilege.number(tmp_path / "number") == 16
    assert privilege.number(tmp_path / "choice") is None
    assert privilege.number(tmp_path / "none") is None
    assert privilege.chosen(tmp_path / "choice") == "advise"
    assert privilege.chosen(tmp_path / "number") is None
