"""A jump tried in QEMU first, as `fdbox update --rehearse` does; the machine that runs this stands for the user's."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fdbox.errors import RehearsalFailed
from fdbox.service.rehearsal import pack, qemu
from fdbox.service.rehearsal.qemu import Plan
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


def rehearse(plan: Plan) -> list[str]:
    said: list[str] = []
    try:
        # /dev/kvm may be there and no guest come up: that is found out by waiting.
        qemu.rehearse(replace(plan, with_kvm=False), said.append)
    finally:
        print(*said, sep="\n")
    return [line.removeprefix("rehearsal: ") for line in said if line.startswith("rehearsal: ")]


def test_a_small_box_crosses_a_real_kexec(initrd: Path) -> None:
    kernel = ensure_kernel()
    said = rehearse(Plan(kernel, initrd, COMMAND_LINE, (kernel, COMMAND_LINE)))
    assert [line.split(" 7.")[0] for line in said] == [
        "running kernel booted",
        "sealed",
        "next kernel loaded",
        "next kernel booted",
        "box arrived counter, memory, reading, writing",
        "init started",
    ]


def test_a_small_box_arrives_as_a_file_under_debians_own_kernel(initrd: Path) -> None:
    said = rehearse(Plan(ensure_stock_kernel().image, initrd, COMMAND_LINE))
    assert "cloud" in said[0]
    assert said[1:] == ["box arrived counter, memory, reading, writing", "init started"]


def test_what_would_not_arrive_is_named(initrd: Path) -> None:
    kernel = ensure_kernel()
    plan = Plan(ensure_kernel(NO_LIVEUPDATE), initrd, COMMAND_LINE, (kernel, COMMAND_LINE))
    with pytest.raises(
        RehearsalFailed, match=r"did not reach '(next kernel booted|box arrived)'"
    ) as caught:
        rehearse(plan)
    console = caught.value.remedy.split()[4].rstrip(";")
    assert Path(console).exists()
    Path(console).unlink()


def test_an_initrd_that_is_cut_short_is_noticed(initrd: Path) -> None:
    initrd.write_bytes(initrd.read_bytes()[:5000])
    with pytest.raises(RehearsalFailed, match="did not reach 'next kernel booted'"):
        rehearse(Plan(ensure_kernel(), initrd, COMMAND_LINE))


def test_the_archive_is_one_that_others_read(tmp_path: Path) -> None:
    debian.ensure_programs({"cpio": "cpio"})
    raw = pack.archive({"some/file": b"content"})
    done = subprocess.run(["cpio", "-idm", "--quiet"], input=raw, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "some/file").read_bytes() == b"content"
    assert (tmp_path / pack.INIT).stat().st_mode & 0o111
