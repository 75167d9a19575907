"""QEMU's command line, and the programs that it needs beside it."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.debian import CannotPrepare

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "/usr/sbin/mkfs.ext4": "e2fsprogs"}
_VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
_START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the host that the guest can mount."""

    path: Path
    tag: str
    is_writable: bool = False


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine as QEMU makes it."""

    memory: str
    cpus: int
    disk: Path
    console: Path
    folders: Sequence[Folder]
    #: how guests can mount the folders: 9p, virtiofs
    transports: frozenset[str]
    #: where each write and each flush of the disk is recorded (the format of dm-log-writes)
    log: Path | None = None


@contextmanager
def running(
    hardware: Hardware, kernel: Path, initrd: Path, line: str, scratch: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run it; whatever is left of it at the end is killed."""
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max"]
    command += ["-smp", str(hardware.cpus), "-m", hardware.memory]
    command += ["-no-reboot", "-nic", "none"]
    command += ["-display", "none", "-monitor", "none", "-serial", f"file:{hardware.console}"]
    command += _disk(hardware)
    command += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", line]
    with ExitStack() as stack:
        if "9p" in hardware.transports:
            command += [word for folder in hardware.folders for word in _by_9p(folder)]
        if "virtiofs" in hardware.transports:
            memory = f"memory-backend-memfd,id=memory,size={hardware.memory},share=on"
            command += ["-object", memory, "-machine", "memory-backend=memory"]
            for folder in hardware.folders:
                command += stack.enter_context(_by_virtiofs(folder, scratch))
        yield stack.enter_context(_killed_at_the_end(command))


def _disk(hardware: Hardware) -> list[str]:
    file = f"driver=file,filename={hardware.disk},node-name=file"
    if hardware.log is None:
        top = "driver=raw,file=file,node-name=disk"
    else:
        top = f"driver=blklogwrites,file=file,log.driver=file,log.filename={hardware.log},node-name=disk"
    return ["-blockdev", file, "-blockdev", top, "-device", "virtio-blk-pci,drive=disk"]


def _by_9p(folder: Folder) -> list[str]:
    options = f"local,path={folder.path},mount_tag={folder.tag},security_model=none,multidevs=remap"
    return ["-virtfs", options if folder.is_writable else f"{options},readonly=on"]


@contextmanager
def _by_virtiofs(folder: Folder, scratch: Path) -> Iterator[list[str]]:
    """Serve a folder. That it is not to be written, only the guest's mount says."""
    if not _VIRTIOFSD.exists():
        raise CannotPrepare(f"{_VIRTIOFSD} is missing: install qemu-system-common as root")
    socket = scratch / f"{folder.tag}.socket"
    command = [str(_VIRTIOFSD), f"--socket-path={socket}", "--thread-pool-size=0"]
    command += ["-o", f"source={folder.path},sandbox=chroot,log_level=err"]
    command += ["-o", "cache=none" if folder.is_writable else "cache=auto"]
    with _killed_at_the_end(command, scratch / f"{folder.tag}.log") as server:
        end = time.monotonic() + _START_SECONDS
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > end:
                raise CannotPrepare(f"{_VIRTIOFSD} does not serve {folder.path}")
            time.sleep(0.01)
        device = f"vhost-user-fs-pci,chardev={folder.tag},tag={folder.tag}"
        yield ["-chardev", f"socket,id={folder.tag},path={socket}", "-device", device]


@contextmanager
def _killed_at_the_end(
    command: Sequence[str], log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with ExitStack() as stack:
        out = None if log is None else stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=out)
        stack.enter_context(process)  # it waits
        stack.callback(process.kill)
        yield process
