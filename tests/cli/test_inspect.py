"""`fdbox inspect`, and kernels by version, on this machine: its own kernel is what it is."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.nextkernel import images

from fdbox.cli import main

if TYPE_CHECKING:
    from pathlib import Path

Capture = pytest.CaptureFixture[str]
VERSION = "98.7.6"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / f"vmlinuz-{VERSION}-x"
    path.write_bytes(images.bzimage(gzip.compress(images.kernel(config=""))))
    return path


def test_what_it_prints(image: Path, capsys: Capture) -> None:
    assert main.run(["inspect", str(image), "--append", "liveupdate=on"]) == 1
    out = capsys.readouterr().out
    lines = [line.split(None, 1) for line in out.splitlines() if line]
    assert ["release", images.RELEASE] in lines
    assert ["version", images.BANNER] in lines
    assert ["configuration", "not found"] in lines
    assert ["format", "bzImage for x86_64, gzip"] in lines
    assert "kho-v4" in out
    assert "It does not take over what boxes hold.\nBoxes can still cross as files: " in out
    assert "- live update is off: " in out
    assert "- kho=on is missing: " in out
    assert "add kho=on to its command line" in out


def test_the_configuration_given(image: Path, tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "config"
    config.write_text(images.CONFIG)
    main.run(["inspect", str(image), "--config", str(config), "--append", "liveupdate=on"])
    out = capsys.readouterr().out
    assert "KEXEC_HANDOVER_ENABLE_DEFAULT y" in out
    assert "kho=on is missing" not in out


def test_json(image: Path, capsys: Capture) -> None:
    assert main.run(["inspect", str(image), "--json", "--reuse-cmdline"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["accepts"] == {
        "kho": ["kho-v4"],
        "luo": ["luo-v5"],
        "memfd": ["memfd-v2"],
        "others": [],
    }
    assert said["running"]["release"] == os.uname().release
    assert said["commandLine"]
    assert said["takesOver"] is False
    assert {"what", "running", "next", "effect", "consequence", "remedy"} == {
        key for problem in said["problems"] for key in problem
    }


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["/etc/passwd"], 39, "/etc/passwd: this is no kernel image"),
        (["/"], 2, "cannot open /: it is a directory, not a regular file"),
        (["/dev/zero"], 2, "cannot open /dev/zero: it is a device"),
        (["/no/where"], 2, "cannot open /no/where"),
        (["1.2.3"], 2, "no kernel 1.2.3 in /boot, /efi, "),
        (["/etc/passwd", "--append", "x", "--reuse-cmdline"], 2, "not allowed with"),
    ],
)
def test_what_it_refuses(arguments: list[str], status: int, text: str, capsys: Capture) -> None:
    assert main.run(["inspect", *arguments]) == status
    assert text in capsys.readouterr().err


def test_a_configuration_that_cannot_be_read(image: Path, capsys: Capture) -> None:
    assert main.run(["inspect", str(image), "--config", "/no/where"]) == 2
    assert "cannot read /no/where" in capsys.readouterr().err
    assert main.run(["inspect", str(image), "--config", "/dev/zero"]) == 2
    assert "cannot read /dev/zero: it is a device" in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_nothing_waits_for_who_writes_to_a_fifo(image: Path, capsys: Capture) -> None:
    fifo, own = str(image.with_name("fifo")), str(image)
    os.mkfifo(fifo)
    for words in (
        ["inspect", fifo],
        ["inspect", own, "--config", fifo],
        ["doctor", "--kernel", fifo],
        ["update", "--kernel", fifo],
        ["update", "--kernel", own, "--initrd", fifo],
        ["import", fifo],
    ):
        assert main.run(words) == 2
        assert f"{fifo}: it is a FIFO, not a regular file" in capsys.readouterr().err


def test_the_doctor_looks_at_an_initrd_as_update_does(
    image: Path, tmp_path: Path, socket_path: Path, capsys: Capture
) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for initrd, said in (
        ("/no/where", "cannot open /no/where: No such file"),
        (str(tmp_path), "it is a directory"),
        ("/dev/zero", "it is a device"),
        (str(empty), "is empty"),
    ):
        words = ["--socket", str(socket_path), "--initrd", initrd]
        assert main.run(["doctor", *words]) == 2, "also without a kernel"
        assert said in capsys.readouterr().err
        assert main.run(["doctor", "--kernel", str(image), *words]) == 2
        assert said in capsys.readouterr().err
        assert main.run(["update", "--kernel", str(image), *words]) == 2
        assert said in capsys.readouterr().err


def with_boot(boot: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run fdbox where `boot` is /boot."""
    own = f'mount --bind {boot} /boot && exec "$@"'
    line = ["unshare", "--mount", "sh", "-c", own, "sh", sys.executable, "-m", "fdbox", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.mark.root
def test_inspect_by_version(image: Path) -> None:
    done = with_boot(image.parent, "inspect", VERSION, "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["path"] == f"/boot/vmlinuz-{VERSION}-x"


@pytest.mark.root
@pytest.mark.usefixtures("daemon_process")
def test_update_by_version_says_what_it_takes(image: Path, socket_path: Path) -> None:
    options = ["--socket", str(socket_path), "--dry-run"]
    done = with_boot(image.parent, "update", "--kernel", VERSION, *options)
    assert done.stdout.splitlines()[0] == f"kernel /boot/vmlinuz-{VERSION}-x, initrd none"
    image.with_name(f"initrd.img-{VERSION}-x").write_text("initrd")
    done = with_boot(image.parent, "update", "--kernel", VERSION, *options)
    said = f"kernel /boot/vmlinuz-{VERSION}-x, initrd /boot/initrd.img-{VERSION}-x"
    assert done.stdout.splitlines()[0] == said
    other = image.with_name("other")
    other.touch()
    named = ["update", "--kernel", VERSION, "--initrd", str(other)]
    done = with_boot(image.parent, *named, *options)
    assert done.returncode == 2
    assert f"{other} is empty" in done.stderr
    other.write_text("initrd")
    done = with_boot(image.parent, *named, *options)
    assert done.stdout.splitlines()[0] == f"kernel /boot/vmlinuz-{VERSION}-x, initrd {other}"
    assert done.returncode not in (0, 2), "the image is no kernel that could be loaded"
    done = with_boot(image.parent, "update", "--kernel", "98.7.5", *options)
    assert (done.returncode, done.stdout) == (2, "")
