"""Packages of newer Debian suites than this machine's: fetched and unpacked, never installed.

apt works with a configuration of its own, made from the machine's sources with the suite's name replaced.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SUITE_LINE = re.compile(r"^(?P<head>deb(?:\s+\[[^\]]*\])?\s+\S+\s+)(?P<suite>\S+)(?P<tail>\s.*)?$")


class CannotPrepare(Exception):
    """Raised when this machine cannot be given what the test needs; says what, and what to do."""


def cache() -> Path:
    """Return the folder outside the checkout where everything fetched and built is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    found = Path(base) / "fdbox"
    found.mkdir(parents=True, exist_ok=True)
    return found


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Let one process at a time prepare the thing called `name`."""
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ensure_programs(programs: dict[str, str]) -> None:
    """Install the packages of `programs` (path or command -> package) that are not there.

    Raises:
        CannotPrepare: something is missing, and this is not root.
    """
    missing = [
        pkg for what, pkg in programs.items() if not (shutil.which(what) or Path(what).exists())
    ]
    if not missing:
        return
    if os.geteuid() != 0:
        raise CannotPrepare(f"these packages are missing: install {' '.join(missing)} as root")
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]
    with alone("apt"):
        _run([*quiet, "update"])
        _run([*quiet, "install", "--no-install-recommends", *missing])


def _machine_sources() -> list[str]:
    """Return the machine's own sources as one-line entries."""
    lines = []
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for file in files:
        if file.suffix == ".sources":
            lines += _from_deb822(file.read_text())
        elif file.suffix == ".list" and file.exists():
            lines += [
                line.strip() for line in file.read_text().splitlines() if line.startswith("deb ")
            ]
    return lines


def _from_deb822(text: str) -> list[str]:
    lines = []
    for paragraph in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^(\S+):\s*(.*(?:\n\s+.*)*)$", paragraph, re.MULTILINE))
        if "deb" not in fields.get("Types", "").split():
            continue
        signed = fields.get("Signed-By", "").strip()
        options = f"[signed-by={signed}] " if signed.startswith("/") else ""
        components = fields.get("Components", "main")
        lines += [
            f"deb {options}{uri} {suite} {components}"
            for uri in fields["URIs"].split()
            for suite in fields["Suites"].split()
        ]
    return lines


def _renamed(suite: str) -> list[str]:
    """Return the machine's main source with the suite's name replaced."""
    for line in _machine_sources():
        found = _SUITE_LINE.match(line)
        if found and "security" not in line and "-" not in found["suite"]:
            return [f"{found['head']}{suite}{found['tail'] or ' main'}"]
    raise CannotPrepare("this machine has no Debian source: add one to /etc/apt")


def _apt(suite: str, architecture: str = "") -> list[str]:
    """Return the options that make apt look at `suite` alone; its lists are fetched once a day.

    Without an architecture, it is the machine's own.
    """
    home = cache() / "apt" / suite / architecture
    (home / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (home / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    (home / "sources.d").mkdir(exist_ok=True)
    (home / "sources.d" / "suite.list").write_text("\n".join(_renamed(suite)) + "\n")
    (home / "status").touch()
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": home / "sources.d",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State::Lists": home / "lists",
        "Dir::State::status": home / "status",
        "Dir::Cache": home,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    if architecture:
        options |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
    given = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    if not any((home / "lists").glob("*Packages*")):
        _run(["apt-get", *given, "update", "-q"])
    return given


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotPrepare(f"{' '.join(command[-3:])} failed: {done.stderr[-800:]}")
    return done.stdout


def search(pattern: str, suite: str, architecture: str = "") -> list[str]:
    """Return the names of the suite's packages that match."""
    out = _run(["apt-cache", *_apt(suite, architecture), "pkgnames"])
    return [name for name in out.split() if re.fullmatch(pattern, name)]


def fetch(package: str, suite: str, into: Path, architecture: str = "") -> Path:
    """Return the .deb of `package`, downloaded into `into`."""
    into.mkdir(parents=True, exist_ok=True)
    before = set(into.glob(f"{package}_*.deb"))
    _run(["apt-get", *_apt(suite, architecture), "download", package], cwd=into)
    after = set(into.glob(f"{package}_*.deb"))
    return max(after - before or after, key=lambda path: path.stat().st_mtime)


def unpack(deb: Path, into: Path) -> None:
    """Unpack a .deb into a folder."""
    into.mkdir(parents=True, exist_ok=True)
    _run(["dpkg-deb", "-x", str(deb), str(into)])


def unpacked(package: str, suite: str) -> Path:
    """Return a folder with `package` and everything it depends on, unpacked; kept in the cache."""
    root = cache() / "unpacked" / f"{package}-{suite}"
    with alone(f"unpack-{package}"):
        if root.exists():
            return root
        options = ["--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"]
        options += ["--no-replaces", "--no-enhances"]
        out = _run(["apt-cache", *_apt(suite), "depends", *options, package])
        names = {line for line in out.splitlines() if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", line)}
        debs = root.with_suffix(".debs")
        building = root.with_suffix(".new")
        shutil.rmtree(building, ignore_errors=True)
        for name in sorted(names):
            unpack(fetch(name, suite, debs), building)
        shutil.rmtree(debs)
        building.rename(root)
    return root


def command(root: Path, program: str) -> list[str]:
    """Return how to run a program of an unpacked folder: with its own loader and libraries."""
    loader = next(path for path in root.rglob("ld-linux-x86-64.so.2") if path.exists())
    shared = (path for path in root.rglob("*.so*") if path.is_file())
    libraries = sorted({str(path.parent) for path in shared if path.read_bytes()[:4] == b"\x7fELF"})
    return [str(loader), "--library-path", ":".join(libraries), str(root / program)]
