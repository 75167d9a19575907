"""The next kernel, as verbs let one name it: a path or a version, and a command line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fdbox.errors import UsageError
from fdbox.linux import regular
from fdbox.nextkernel import command_line as parts
from fdbox.nextkernel.find import Installed, find

if TYPE_CHECKING:
    import argparse

    from fdbox.linux.fd import OwnedFd

#: what the boot loader added, and the next kernel has no use for
_OF_THE_BOOT_LOADER = ("BOOT_IMAGE=", "initrd=")
_RUNNING = Path("/proc/cmdline")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The image that was meant; `installed` where it was named by its version."""

    path: Path
    installed: Installed | None = None

    @property
    def initrd(self) -> Path | None:
        """The initrd installed with it; UsageError if there are several."""
        return None if self.installed is None else self.installed.initrd


def choose(text: str) -> Chosen:
    """Return the image that a path or a version stands for; UsageError if there is none, or several."""
    path = Path(text)
    if "/" in text or _is_there(path):
        return Chosen(path)
    found = find(text)
    return Chosen(found.image, found)


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:  # nor is what no file can be called
        return False
    return True


def open_image(path: Path) -> OwnedFd:
    """Return an image opened (a kernel, an initrd, what was exported); UsageError if that cannot be, or has nothing in it."""
    size(path)
    try:
        return regular.open_to_read(path)
    except OSError as error:
        raise _cannot_open(path, error) from error


def size(path: Path) -> int:
    """Return the bytes of an image, also of one that is not for us to read; UsageError as `open_image`."""
    try:
        found = regular.size(path)
    except OSError as error:
        raise _cannot_open(path, error) from error
    if not found:
        raise UsageError(f"{path} is empty", remedy="copy or download it again")
    return found


def _cannot_open(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot open {path}: {error.strerror}",
        remedy="name a file that is there, and that you may read",
    )


def line_arguments(parser: argparse.ArgumentParser) -> None:
    """--append and --reuse-cmdline."""
    line = parser.add_mutually_exclusive_group()
    line.add_argument("--append", metavar="TEXT", default="", help="its command line")
    line.add_argument(
        "--reuse-cmdline", action="store_true", help="the command line of the running kernel"
    )


def command_line(options: argparse.Namespace) -> str:
    """Return the next kernel's command line."""
    if not options.reuse_cmdline:
        return str(options.append)
    words = parts.words(running_line())
    return " ".join(word for word in words if not _is_of_the_boot_loader(word))


def running_line() -> str:
    """Return the running kernel's command line; its bytes need not be UTF-8 (os.fsdecode)."""
    return os.fsdecode(_RUNNING.read_bytes()).strip()


def _is_of_the_boot_loader(word: str) -> bool:
    """Return whether a word is one that a boot loader adds; the quotes may be around all of it."""
    return word.removeprefix('"').startswith(_OF_THE_BOOT_LOADER)
