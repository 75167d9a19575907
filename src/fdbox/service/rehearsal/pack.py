"""An archive to lay over an initrd: this Python, the modules that guest.py imports, the libraries of all, and a few files.

The kernel unpacks archives one behind the other, each over the one before (Documentation/driver-api/early-userspace,
buffer-format.rst). Everything has its path on this machine, so that a link like /lib -> usr/lib of an initrd stays.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.errors import RehearsalFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: what the kernel starts (rdinit=)
INIT = "fdbox-rehearsal"
_GUEST = "fdbox.service.rehearsal.guest"
_LIST = (
    f"import sys, encodings.ascii, encodings.latin_1, {_GUEST}\n"
    "print(*{m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)}, sep='\\n')"
)
_NEEDED = re.compile(r"(/\S+)(?: \(0x[0-9a-f]+\))")
_LOADER = "lib64"


def archive(files: Mapping[str, bytes]) -> bytes:
    """Return the archive, uncompressed; `files` are more of what is to be in it, by path.

    Raises:
        RehearsalFailed: this Python cannot be packed.
    """
    modules = _modules()
    own = [Path(sys.executable).resolve(), *(path for path in modules if path.suffix == ".so")]
    wanted = [*modules, *own[:1], *_markers(modules), *_libraries(own)]
    return b"".join(_archive(wanted, {**files, INIT: _init(modules)}))


def _modules() -> list[Path]:
    done = subprocess.run(
        [sys.executable, "-c", _LIST], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RehearsalFailed(f"what the rehearsal imports cannot be listed: {done.stderr[-300:]}")
    return sorted(Path(os.path.normpath(line)) for line in done.stdout.split("\n") if line)


def _markers(modules: Iterable[Path]) -> Iterator[Path]:
    """Yield what Python looks for to find its library (Modules/getpath.py)."""
    for module in modules:
        if module.name == "os.py":
            yield module


def _init(modules: Iterable[Path]) -> bytes:
    """Return the script that the kernel starts; a script's first line takes one program, and no variables."""
    folders = sorted(
        {_root_of(path).resolve() for path in modules}
    )  # where they are in the archive
    python = Path(sys.executable).resolve()
    code = f"""#!{python}
import sys
sys.dont_write_bytecode = True
sys.path[:0] = {[str(folder) for folder in folders]!r}
from {_GUEST} import main
main()
"""
    return code.encode()


def _root_of(path: Path) -> Path:
    """Return the folder of the path of imports in which a module is."""
    folder = path.parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def _libraries(programs: Iterable[Path]) -> set[Path]:
    found: set[Path] = set()
    for program in programs:
        done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
        found.update(Path(path) for path in _NEEDED.findall(done.stdout))
    return found


# --- the format: newc --------------------------------------------------------------------------------------------------


def _archive(paths: Iterable[Path], files: Mapping[str, bytes]) -> Iterator[bytes]:
    folders: dict[str, None] = {}
    entries: dict[str, bytes] = {}
    for path in paths:
        # By its real folder: a folder in the archive would take the place of a link in the initrd.
        place = path if path.parts[1] == _LOADER else path.parent.resolve() / path.name
        entries[str(place).lstrip("/")] = path.read_bytes()
    entries.update(files)
    for name in entries:
        for parent in reversed(Path(name).parents[:-1]):
            folders[str(parent)] = None
    number = 0
    for name in folders:
        number += 1
        yield _entry(number, name, stat.S_IFDIR | 0o755, b"")
    for name, content in entries.items():
        number += 1
        yield _entry(number, name, stat.S_IFREG | 0o755, content)
    yield _entry(0, "TRAILER!!!", 0, b"")


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    raw = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
