"""Samples of kinds: how to make one, and how to look at everything that has to be the same afterwards.

A test file of a kind lists its samples in `SAMPLES`; conformance.py puts each through the same cases, and the virtual machine
takes the same ones across a real kexec. There, `observe` runs in another process, in another kernel: it may rely on nothing but
the descriptors and the folder.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdbox.linux.fd import OwnedFd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: Entries by name. What is not returned (the other end of a pipe) is closed.
Entries = dict[str, OwnedFd]


#: These take samples, and have none.
_CASES = ("test_conformance", "test_formats", "test_fuzz")


def _nothing(folder: Path) -> None:
    """The kernel takes nothing away."""


@dataclass(frozen=True)
class Sample:
    """One example of a kind, or of several that belong together."""

    name: str
    #: entry -> the kind it has to be recognised as
    kinds: Mapping[str, str]
    #: Make it; files go into the folder, which is persistent, and the sample's own.
    make: Callable[[Path], Entries]
    #: What has to be the same afterwards, as JSON has it. It is called once for each time that the sample was made, so it may take what
    #: is queued; it must not hold names, numbers or times that differ each time.
    observe: Callable[[Mapping[str, int], Path], Any]
    #: change something that `verify` has to notice; None where late changes arrive by themselves, or there can be none
    disturb: Callable[[Mapping[str, int]], None] | None = None
    #: what a reboot takes away, where the originals' end does not (a file in /dev/shm)
    reboot: Callable[[Path], None] = _nothing
    #: for each sentence that tells of a loss, something it says
    lost: tuple[str, ...] = ()
    #: needs root, or what only the virtual machine's kernel has
    root: bool = False
    vm_only: bool = False


def every_sample() -> Iterator[Sample]:
    """Yield the samples of all kinds."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.stem in _CASES:
            continue
        yield from getattr(importlib.import_module(f"tests.kinds.{path.stem}"), "SAMPLES", ())
