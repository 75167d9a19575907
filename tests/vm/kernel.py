"""The kernels of the virtual machine: Debian's sources, built small, and each built once.

A recipe says what a kernel is made of. Debian's own, unmodified one is in tests/vm/stock.py.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.vm import debian
from tests.vm.debian import CannotPrepare, cache

SUITES = ("trixie-backports", "forky", "sid")
OLDEST = (7, 3)
FRAGMENT = Path(__file__).with_name("kernel.config")
#: no more than what makes an image that can be inspected, and that says a word before it panics
SMALL = Path(__file__).with_name("kernel-small.config")
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
#: Change it with the way a kernel is built, so that a kernel built in the old way is not taken from the cache.
_RECIPE = b"1"
#: Much of the archive, and none of it read by the build (every Kconfig file is, so whole folders cannot go).
_NOT_NEEDED = (
    "*/Documentation/*.rst",
    "*/Documentation/*.yaml",
    "*/tools/testing/*",
    "*/drivers/gpu/drm/amd/include/*",
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What can be booted."""

    image: Path
    #: in the order in which they are loaded
    modules: tuple[Path, ...] = ()
    #: how it mounts folders of the host: 9p or virtiofs
    transport: str = "9p"
    #: 1 for a kernel that patches its own code (JUMP_LABEL): a second thread of QEMU may meet a breakpoint that is over
    cpus: int = 2
    #: of an image without IKCONFIG
    configuration: Path | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a kernel is made of."""

    #: a pattern; the newest source of the first suite that has one
    package: str = r"linux-source-\d+\.\d+"
    suites: tuple[str, ...] = SUITES
    fragment: Path = FRAGMENT
    #: more lines of configuration
    more: tuple[str, ...] = ()
    #: a file of the source, what stands in it, and what is to stand there
    edit: tuple[str, str, str] | None = None

    def configuration(self) -> bytes:
        """Return what is asked for on top of tinyconfig."""
        return self.fragment.read_bytes() + "".join(f"{line}\n" for line in self.more).encode()

    def key(self) -> str:
        """Return what a kernel of this recipe is called in the cache."""
        made_of = self.configuration() + _RECIPE
        if (self.package, self.suites) != (DEFAULT.package, DEFAULT.suites):
            made_of += repr((self.package, self.suites)).encode()
        if self.edit:
            made_of += repr(self.edit).encode()
        return hashlib.sha256(made_of).hexdigest()[:16]


DEFAULT = Recipe()
#: the release candidate before it
CANDIDATE = Recipe(r"linux-source-7\.3", ("experimental",))
#: the series before it, to be looked at
OLDER = Recipe(
    r"linux-source-7\.2",
    fragment=SMALL,
    more=("CONFIG_LIVEUPDATE=y", "CONFIG_LIVEUPDATE_MEMFD=y"),
)
#: it understands no session of ours: it panics while it boots (kernel.md)
OTHER_ABI = Recipe(
    fragment=SMALL,
    more=("CONFIG_LIVEUPDATE=y", "CONFIG_LIVEUPDATE_MEMFD=y"),
    edit=("include/linux/kho/abi/luo.h", '"luo-v', '"luo-v9'),
)
#: it gives back the memory that it was handed, and knows of no session
NO_LIVEUPDATE = Recipe(fragment=SMALL, more=("CONFIG_LIVEUPDATE=n",))

RECIPES = {
    "default": DEFAULT,
    "candidate": CANDIDATE,
    "older": OLDER,
    "other-abi": OTHER_ABI,
    "no-liveupdate": NO_LIVEUPDATE,
}


def ensure_source_package(recipe: Recipe = DEFAULT) -> Path:
    """Return the .deb of a kernel's source: 150 MB of real data, too."""
    folder = cache() / "kernel"
    if recipe.suites != DEFAULT.suites or recipe.package != DEFAULT.package:
        folder /= "-".join(recipe.suites)
    pattern = re.compile(rf"{recipe.package}_.*\.deb")
    with debian.alone("kernel-source"):
        found = [path for path in folder.glob("*.deb") if pattern.fullmatch(path.name)]
        if found:
            return max(found)
        for suite in recipe.suites:
            names = debian.search(recipe.package, suite)
            recent = [name for name in names if recipe is not DEFAULT or _version(name) >= OLDEST]
            if recent:
                fetched = debian.fetch(max(recent, key=_version), suite, folder / "new")
                return fetched.rename(folder / fetched.name)
    raise CannotPrepare(f"no {recipe.package} in {', '.join(recipe.suites)}")


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", package)[:2])


def ensure_kernel(recipe: Recipe = DEFAULT) -> Path:
    """Return the bzImage, which is built if it is not in the cache (6-8 minutes on two cores, a small one 1-2)."""
    key = recipe.key()
    with debian.alone(f"kernel-build-{key}"):
        for found in (cache() / "kernel").glob(f"*-{key}/bzImage"):
            return found
        package = ensure_source_package(recipe)
        debian.ensure_programs(BUILD_TOOLS)
        version = package.name.split("_")[1]
        return _build(recipe, package, cache() / "kernel" / f"{version}-{key}")


def _build(recipe: Recipe, package: Path, target: Path) -> Path:
    work = target.with_name(f"{target.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    debian.unpack(package, work / "deb")
    tarball = next((work / "deb").rglob("linux-source-*.tar.xz"))
    exclude = [f"--exclude={pattern}" for pattern in _NOT_NEEDED]
    _run(["tar", "-xf", str(tarball), "-C", str(work), *exclude], work)
    source = next(work.glob("linux-source-*"))
    if recipe.edit:
        _edit(source, *recipe.edit)
    build = work / "build"
    build.mkdir()
    make = ["make", "-C", str(source), f"O={build}"]
    _run([*make, "tinyconfig"], work)
    with (build / ".config").open("ab") as config:
        config.write(recipe.configuration())
    _run([*make, "olddefconfig"], work)
    _check_configuration((build / ".config").read_text(), recipe.configuration().decode())
    _run([*make, "-j2", "bzImage"], work)
    result = work / "result"
    result.mkdir()
    shutil.copy(build / "arch/x86/boot/bzImage", result)
    shutil.copy(build / ".config", result / "config")
    result.rename(target)
    shutil.rmtree(work)
    return target / "bzImage"


def _edit(source: Path, file: str, old: str, new: str) -> None:
    text = (source / file).read_text()
    if old not in text:
        raise CannotPrepare(f"{file} of this kernel source has no {old}")
    (source / file).write_text(text.replace(old, new))


def _check_configuration(configuration: str, asked: str) -> None:
    """Refuse a kernel without what was asked for: it would boot, and fail in a test that has nothing to do with it."""
    got = set(configuration.splitlines())
    wanted = [line for line in asked.splitlines() if line.startswith("CONFIG_")]
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
