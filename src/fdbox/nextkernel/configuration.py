"""A kernel's configuration: from inside it (IKCONFIG), or from the file that comes with it."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fdbox.linux import regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_BEGIN = b"IKCFG_ST"  # kernel/configs.c
_LIMIT = 4 << 20
_LINE = re.compile(r"^CONFIG_(\w+)=(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The options, and where they were read."""

    source: str
    options: Mapping[str, str] = field(repr=False)

    def has(self, option: str) -> bool:
        """Return whether an option (without CONFIG_) is built in."""
        return self.options.get(option) == "y"

    def text(self, option: str) -> str:
        """Return the value of an option that is a string; empty if it has none."""
        return self.options.get(option, "").removeprefix('"').removesuffix('"').replace('\\"', '"')


def parse(text: str, source: str) -> Configuration | None:
    """Return the configuration that a .config file has; None if it has no option at all."""
    options = dict(_LINE.findall(text))
    return Configuration(source, options) if options else None


def inside(kernel: bytes, source: str) -> Configuration | None:
    """Return the configuration packed into an unpacked kernel; None if there is none (CONFIG_IKCONFIG is off)."""
    at = kernel.find(_BEGIN)
    while at >= 0:
        at += len(_BEGIN)
        if (text := _gunzip(kernel[at : at + _LIMIT])) is not None:
            return parse(text, source)
        at = kernel.find(_BEGIN, at)
    return None


def from_file(path: Path) -> Configuration | None:
    """Return the configuration in a file, which may be in gzip; None if that is none. OSError if it cannot be read, or is too large."""
    data = regular.read(path, _LIMIT)
    text = _gunzip(data) if data.startswith(b"\x1f\x8b") else data.decode("utf-8", "replace")
    return None if text is None else parse(text, str(path))


def installed(root: Path, release: str) -> list[Path]:
    """Return where packages put the configuration of a kernel of this release."""
    modules = [root / folder / release / "config" for folder in ("lib/modules", "usr/lib/modules")]
    return [*modules, root / "boot" / f"config-{release}"]


def first_of(paths: Iterable[Path], banner: str) -> Configuration | None:
    """Return the first configuration found that is of the kernel with this banner, as far as one can tell.

    Two builds may have one release. The banner names the compiler, and so does the configuration.
    """
    for path in paths:
        try:
            found = from_file(path)
        except OSError:
            continue
        if found is not None and found.text("CC_VERSION_TEXT").strip() in banner:
            return found
    return None


def _gunzip(data: bytes) -> str | None:
    stream = zlib.decompressobj(wbits=31)
    try:
        out = stream.decompress(data, _LIMIT)
    except zlib.error:
        return None
    return out.decode("utf-8", "replace") if stream.eof else None
