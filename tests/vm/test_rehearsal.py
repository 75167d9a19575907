"""A jump tried in QEMU first, as `fdbox update --rehearse` does; the machine that runs this stands for the user's."""

from __future__ import annotations

import os
import select
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.cli.rehearsal import copy_a_box
from fdbox.errors import RehearsalFailed
from fdbox.linux import signalfd, timerfd
from fdbox.service.rehearsal import pack, qemu
from fdbox.service.rehearsal.qemu import Copy, Plan
from tests.vm import debian
from tests.vm.kernel import NO_LIVEUPDATE, ensure_kernel
from tests.vm.machine import COMMAND_LINE
from tests.vm.stock import ensure_stock_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.slow]


@pytest.fixture
def initrd(tmp_path: Path) -> Iterator[Path]:
    """Return an initrd with an init of its own, packed; nothing else runs in QEMU meanwhile."""
    debian.ensure_programs({qemu.PROGRAM: "qemu-system-x86", "cpio": "cpio"})
    debian.ensure_programs({"/bin/busybox": "busybox-static"})
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "init").write_text("#!/busybox sh\nexec /busybox sleep 100\n")
    for name in ("busybox", "init"):
        (tree / name).chmod(0o755)
    image = tmp_path / "initrd"
    with image.open("wb") as out:
        command = "find . | cpio --quiet -o -H newc | gzip -1"
        subprocess.run(command, shell=True, cwd=tree, stdout=out, check=True)
    with debian.alone("machine"):
        yield image


@pytest.fixture
def copied(daemon_process: subprocess.Popen[str], socket_path: Path) -> Copy:
    """Return a copy of a box of all kinds that can be copied, from the daemon, as the command does it."""
    with fdbox.connect(socket_path) as client, select.epoll() as epoll:
        reading, writing = os.pipe()
        left, right = socket.socketpair()
        os.write(writing, b"in the pipe")
        left.sendall(b"in the socket")
        epoll.register(reading, select.EPOLLIN)
        put = {
            "counter": os.eventfd(3),
            "left": left.detach(),
            "memory": os.memfd_create("memory"),
            "reading": reading,
            "right": right.detach(),
            "signals": signalfd.create(1 << 9).detach(),
            "timer": timerfd.create(timerfd.MONOTONIC).detach(),
            "watch": os.dup(epoll.fileno()),
            "writing": writing,
        }
        os.pwrite(put["memory"], b"in memory", 3 << 20)
        client.box("mine").put_many(put)
        for fd in put.values():
            os.close(fd)
        made = copy_a_box(client, print)
    assert made is not None
    assert sorted(made.entries) == sorted(put)
    return made


def rehearse(plan: Plan) -> list[str]:
    said: list[str] = []
    try:
        # /dev/kvm may be there and no guest come up: that is found out by waiting.
        qemu.rehearse(replace(plan, with_kvm=False), said.append)
    finally:
        print(*said, sep="\n")
    return [line.removeprefix("rehearsal: ") for line in said if line.startswith("rehearsal: ")]


def take_console(error: RehearsalFailed) -> str:
    """Return what stands in the console that was kept, and take it away."""
    assert error.remedy is not None
    console = Path(error.remedy.split()[4].rstrip(";"))
    try:
        return console.read_text(errors="replace")
    finally:
        console.unlink()


def test_small_boxes_cross_a_real_kexec(initrd: Path, copied: Copy) -> None:
    kernel = ensure_kernel()
    said = rehearse(Plan(kernel, initrd, COMMAND_LINE, (kernel, COMMAND_LINE), copied))
    assert [line.split(" 7.")[0] for line in said] == [
        "running kernel booted",
        "sealed",
        "next kernel loaded",
        "next kernel booted",
        "box arrived counter, memory, reading, writing",
        f"copy arrived {', '.join(sorted(copied.entries))}",
        "init started",
    ]


def test_small_boxes_arrive_as_files_under_debians_own_kernel(initrd: Path, copied: Copy) -> None:
    said = rehearse(Plan(ensure_stock_kernel().image, initrd, COMMAND_LINE, copy=copied))
    assert "cloud" in said[0]
    assert said[1:] == [
        "box arrived counter, memory, reading, writing",
        f"copy arrived {', '.join(sorted(copied.entries))}",
        "init started",
    ]


def test_an_entry_of_the_copy_that_does_not_arrive_is_named(initrd: Path, copied: Copy) -> None:
    copy = replace(copied, entries=(*copied.entries, "another"))
    with pytest.raises(
        RehearsalFailed, match=r"did not reach 'copy arrived': .*'another'"
    ) as caught:
        rehearse(Plan(ensure_kernel(), initrd, COMMAND_LINE, copy=copy))
    assert take_console(caught.value)


def test_what_would_not_arrive_is_named(initrd: Path) -> None:
    kernel = ensure_kernel()
    plan = Plan(ensure_kernel(NO_LIVEUPDATE), initrd, COMMAND_LINE, (kernel, COMMAND_LINE))
    with pytest.raises(
        RehearsalFailed, match=r"did not reach '(next kernel booted|box arrived)'"
    ) as caught:
        rehearse(plan)
    assert take_console(caught.value)


def test_an_initrd_that_is_cut_short_is_noticed(initrd: Path) -> None:
    initrd.write_bytes(initrd.read_bytes()[:5000])
    with pytest.raises(RehearsalFailed, match="did not reach 'next kernel booted'") as caught:
        rehearse(Plan(ensure_kernel(), initrd, COMMAND_LINE))
    assert take_console(caught.value)


def test_the_archive_is_one_that_others_read(tmp_path: Path) -> None:
    debian.ensure_programs({"cpio": "cpio"})
    raw = pack.archive({"some/file": b"content"})
    done = subprocess.run(["cpio", "-idm", "--quiet"], input=raw, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "some/file").read_bytes() == b"content"
    assert (tmp_path / pack.INIT).stat().st_mode & 0o111
