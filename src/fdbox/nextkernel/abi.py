"""The strings by which two kernels know whether they understand each other (include/linux/kho/abi/ in the kernel's source).

Each kernel compares what it finds with its own string, by equality: there is no list of versions that it also takes. The
strings of KHO and of LUO stand among the kernel's constants. That of a kind of file (memfd) stands in the structure with
which it is registered, in a field of 48 bytes behind a pointer (`struct liveupdate_file_handler`): by that shape, kinds
that are not known here are found, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSION = re.compile(rb"-v[0-9]{1,9}\0")
_NAME = re.compile(rb"[a-z][a-z0-9_-]*\Z")
_PRINTABLE = range(0x20, 0x7F)
_FIELD = 48  # LIVEUPDATE_HNDL_COMPAT_LENGTH
_POINTER = b"\xff\xff"  # the upper end of a pointer into the kernel

#: What is told apart from everything else that ends in a version.
_KHO, _LUO, _MEMFD = "kho", "luo", "memfd"


@dataclass(frozen=True, slots=True)
class Abi:
    """What a kernel writes and accepts; a part that is not built in is empty. One string each, in all kernels so far."""

    kho: tuple[str, ...] = ()
    luo: tuple[str, ...] = ()
    memfd: tuple[str, ...] = ()
    others: tuple[
        str, ...
    ] = ()  # further kinds of file, or what files have in common, that this kernel carries


class Scanner:
    """Finds the strings in a kernel that comes in pieces."""

    def __init__(self) -> None:
        self._found: dict[str, set[str]] = {_KHO: set(), _LUO: set(), _MEMFD: set(), "": set()}
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        data = self._rest + piece
        for match in _VERSION.finditer(data):
            begin = max(0, match.start() - _FIELD)
            if name := _NAME.search(data[begin : match.start()]):
                self._take(data, begin + name.start(), match.end() - 1)
        # A string may lie across the end of the piece: it is seen whole in the next one (twice does not matter).
        self._rest = data[-3 * _FIELD :]

    def _take(self, data: bytes, begin: int, end: int) -> None:
        if (data[begin - 1] in _PRINTABLE) if begin else self._rest:
            return  # the end of a sentence, or of a name that was seen whole in the piece before
        text = data[begin:end].decode("ascii")
        family = text.rpartition("-v")[0]
        if family in self._found:
            self._found[family].add(text)
        elif _is_registered(data, begin, end):
            self._found[""].add(text)

    def result(self) -> Abi:
        """Return what was found."""
        return Abi(*(tuple(sorted(self._found[family])) for family in (_KHO, _LUO, _MEMFD, "")))


def _is_registered(data: bytes, begin: int, end: int) -> bool:
    field = data[end : begin + _FIELD]
    return (
        data[max(0, begin - 2) : begin] == _POINTER
        and len(field) == begin + _FIELD - end
        and not any(field)
    )


def scan(kernel: bytes) -> Abi:
    """Return the strings of an unpacked kernel."""
    scanner = Scanner()
    scanner.feed(kernel)
    return scanner.result()
