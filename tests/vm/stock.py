"""Debian's own kernel, unmodified: the one for clouds, which cannot hand anything over (no KEXEC_HANDOVER)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.vm import debian
from tests.vm.debian import CannotPrepare, cache
from tests.vm.kernel import OLDEST, SUITES, Kernel

#: the package of the image, as Debian splits a kernel from 7.3 on, by architecture
_IMAGE = r"linux-binary-(\d+\.\d+\.\d+\+deb\d+-cloud-{})"
_TOOLS = {"xz": "xz-utils", "/bin/busybox": "busybox-static"}
#: what the machine needs to find its root, and then what the kinds of descriptors and of sockets need
MODULES = (
    *("virtio_blk", "overlay"),
    *("tun", "veth", "dummy", "vsock_loopback", "nf_tables", "vfio"),
    *("unix_diag", "tcp_diag", "udp_diag", "raw_diag", "netlink_diag"),
    *("af_packet_diag", "vsock_diag"),
)


def ensure_stock_kernel() -> Kernel:
    """Return it, from the cache or the archive."""
    with debian.alone("kernel-stock"):
        if found := sorted((cache() / "kernel").glob("stock-*-amd64/usr/lib/modules/*")):
            return _kernel(found[-1])
        root = _unpacked(*_newest("amd64"))
        return _kernel(next((root / "usr/lib/modules").iterdir()))


def ensure_arm64_image() -> Path:
    """Return the image of the same for arm64, to be looked at; its configuration lies beside it."""
    with debian.alone("kernel-arm64"):
        root = cache() / "kernel" / "stock-arm64"
        if not root.exists():
            version, suite = _newest("arm64")
            _parts(root, version, suite, ("base", "binary"), "arm64").rename(root)
        return next((root / "usr/lib/modules").glob("*/vmlinuz"))


def _newest(architecture: str) -> tuple[str, str]:
    """Return the version of the newest, and its suite."""
    pattern = _IMAGE.format(architecture)
    for suite in SUITES:
        names = (
            re.fullmatch(pattern, name) for name in debian.search(pattern, suite, architecture)
        )
        versions = [name[1] for name in names if name and _numbers(name[1]) >= OLDEST]
        if versions:
            return max(versions, key=_numbers), suite
    raise CannotPrepare(
        f"no kernel for clouds >= {OLDEST} for {architecture} in {', '.join(SUITES)}"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _unpacked(version: str, suite: str) -> Path:
    """Return a folder with the image and its modules, these decompressed and with a list of what needs what."""
    root = cache() / "kernel" / f"stock-{version}"
    if root.exists():
        return root
    debian.ensure_programs(_TOOLS)
    work = _parts(root, version, suite, ("base", "binary", "modules"))
    modules = sorted(str(path) for path in work.rglob("*.ko.xz"))
    subprocess.run(["xz", "-d", *modules], check=True)
    # busybox wants the folder of all versions where a system has it
    (work / "lib").symlink_to("usr/lib")
    subprocess.run(["/bin/busybox", "depmod", "-b", str(work), version], check=True)
    work.rename(root)
    return root


def _parts(
    root: Path, version: str, suite: str, parts: tuple[str, ...], architecture: str = ""
) -> Path:
    """Return a new folder beside `root` with these of a kernel's packages, unpacked."""
    work = root.with_name(f"{root.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    for part in parts:
        deb = debian.fetch(f"linux-{part}-{version}", suite, work / "debs", architecture)
        debian.unpack(deb, work)
    shutil.rmtree(work / "debs")
    return work


def _kernel(folder: Path) -> Kernel:
    built_in = {_name(line) for line in (folder / "modules.builtin").read_text().splitlines()}
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[_name(path)] = (path, [_name(other) for other in others.split()])
    order: dict[str, Path] = {}

    def load(name: str) -> None:
        path, others = needs[name]
        for other in others:
            load(other)
        order.setdefault(name, folder / path)

    for name in MODULES:
        if name not in built_in:
            load(name)
    return Kernel(folder / "vmlinuz", tuple(order.values()), "virtiofs", 1, folder / "config")


def _name(path: str) -> str:
    return Path(path).name.removesuffix(".ko").replace("-", "_")
