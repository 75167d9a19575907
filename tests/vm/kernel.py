"""The kernel of the virtual machine: Debian's newest source from 7.3 on, built small, and built once."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from tests.vm import debian
from tests.vm.debian import CannotPrepare, cache

SUITES = ("trixie-backports", "forky", "sid")
OLDEST = (7, 3)
FRAGMENT = Path(__file__).with_name("kernel.config")
BUILD_TOOLS = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
    "/usr/include/libelf.h": "libelf-dev",
    "/usr/include/openssl/ssl.h": "libssl-dev",
}
#: Change it with the way the kernel is built, so that a kernel built in the old way is not taken from the cache.
_RECIPE = b"1"
#: Much of the archive, and none of it read by the build (every Kconfig file is, so whole folders cannot go).
_NOT_NEEDED = (
    "*/Documentation/*.rst",
    "*/Documentation/*.yaml",
    "*/tools/testing/*",
    "*/drivers/gpu/drm/amd/include/*",
)


def ensure_source_package() -> Path:
    """Return the .deb of the kernel's source: 150 MB of real data, too."""
    folder = cache() / "kernel"
    with debian.alone("kernel-source"):
        if found := sorted(folder.glob("linux-source-*.deb")):
            return found[-1]
        for suite in SUITES:
            names = debian.search(r"linux-source-\d+\.\d+", suite)
            recent = [name for name in names if _version(name) >= OLDEST]
            if recent:
                fetched = debian.fetch(max(recent, key=_version), suite, folder / "new")
                return fetched.rename(folder / fetched.name)
    raise CannotPrepare(f"no linux-source >= {OLDEST} in {', '.join(SUITES)}")


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", package)[:2])


def ensure_kernel() -> Path:
    """Return the bzImage, which is built if it is not in the cache (6-8 minutes on two cores)."""
    recipe = FRAGMENT.read_bytes() + _RECIPE
    key = hashlib.sha256(recipe).hexdigest()[:16]
    with debian.alone("kernel-build"):
        for found in (cache() / "kernel").glob(f"*-{key}/bzImage"):
            return found
        package = ensure_source_package()
        debian.ensure_programs(BUILD_TOOLS)
        version = package.name.split("_")[1]
        return _build(package, cache() / "kernel" / f"{version}-{key}")


def _build(package: Path, target: Path) -> Path:
    work = target.with_suffix(".work")
    shutil.rmtree(work, ignore_errors=True)
    debian.unpack(package, work / "deb")
    tarball = next((work / "deb").rglob("linux-source-*.tar.xz"))
    exclude = [f"--exclude={pattern}" for pattern in _NOT_NEEDED]
    _run(["tar", "-xf", str(tarball), "-C", str(work), *exclude], work)
    source = next(work.glob("linux-source-*"))
    build = work / "build"
    build.mkdir()
    make = ["make", "-C", str(source), f"O={build}"]
    _run([*make, "tinyconfig"], work)
    with (build / ".config").open("ab") as config:
        config.write(FRAGMENT.read_bytes())
    _run([*make, "olddefconfig"], work)
    _check_configuration((build / ".config").read_text())
    _run([*make, "-j2", "bzImage"], work)
    result = work / "result"
    result.mkdir()
    shutil.copy(build / "arch/x86/boot/bzImage", result)
    shutil.copy(build / ".config", result / "config")
    result.rename(target)
    shutil.rmtree(work)
    return target / "bzImage"


def _check_configuration(configuration: str) -> None:
    """Refuse a kernel without what was asked for: it would boot, and fail in a test that has nothing to do with it."""
    got = set(configuration.splitlines())
    wanted = [line for line in FRAGMENT.read_text().splitlines() if line.startswith("CONFIG_")]
    missing = [
        line
        for line in wanted
        if (line.removesuffix("=n") + "=y" in got if line.endswith("=n") else line not in got)
    ]
    if missing:
        raise CannotPrepare(f"this kernel source does not give {', '.join(missing)}")


def _run(command: list[str], work: Path) -> None:
    log = work / "log"
    with log.open("ab") as out:
        done = subprocess.run(command, stdout=out, stderr=out, check=False)
    if done.returncode:
        raise CannotPrepare(
            f"{command[0]} {command[-1]} failed; the end of {log}:\n" + log.read_text()[-2000:]
        )
