"""The nodes of a device tree, with typed access to their properties (Devicetree Specification, section 2.2.4)."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field

from fdbox.errors import FdtError

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


@dataclass(slots=True)
class Node:
    """A node: its name with its unit address ("" for the root), its properties as bytes, its children in order."""

    name: str
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def add(self, name: str) -> Node:
        """Return a new last child."""
        child = Node(name)
        self.children.append(child)
        return child

    def child(self, name: str) -> Node:
        """Return the child of that name; FdtError if there is none."""
        found = next((child for child in self.children if child.name == name), None)
        if found is None:
            raise FdtError(f"node {self.name or '/'!r} has no child {name!r}")
        return found

    def has(self, name: str) -> bool:
        """Return whether there is such a property."""
        return name in self.properties

    def data(self, name: str) -> bytes:
        """Return a property's bytes; FdtError if there is none."""
        try:
            return self.properties[name]
        except KeyError:
            raise FdtError(f"node {self.name or '/'!r} has no property {name!r}") from None

    def u32(self, name: str) -> int:
        """Return one 32-bit cell; FdtError if it is not exactly that."""
        return int(_U32.unpack(self._sized(name, _U32.size))[0])

    def u64(self, name: str) -> int:
        """Return one 64-bit number, two cells; FdtError if it is not exactly that."""
        return int(_U64.unpack(self._sized(name, _U64.size))[0])

    def u64s(self, name: str) -> list[int]:
        """Return any number of 64-bit numbers; FdtError if there is a part of one."""
        raw = self.data(name)
        if len(raw) % _U64.size:
            raise FdtError(f"property {name!r} of {self.name or '/'!r} has {len(raw)} bytes")
        return [int(number) for (number,) in _U64.iter_unpack(raw)]

    def text(self, name: str) -> str:
        """Return one string; FdtError if it is not UTF-8 with a NUL at its end."""
        found = self.texts(name)
        if len(found) != 1:
            raise FdtError(f"property {name!r} of {self.name or '/'!r} is not one string")
        return found[0]

    def texts(self, name: str) -> list[str]:
        """Return a list of strings, each with a NUL at its end; FdtError if it is none."""
        raw = self.data(name)
        if not raw:
            return []
        try:
            parts = raw.decode().split("\0")
        except UnicodeDecodeError:
            parts = ["?"]
        if parts.pop():
            raise FdtError(f"property {name!r} of {self.name or '/'!r} is not UTF-8 with a NUL")
        return parts

    def path(self, name: str) -> str:
        """Return a file name, whose bytes need not be UTF-8 (os.fsdecode); FdtError without a NUL at its end alone."""
        raw = self.data(name)
        if not raw.endswith(b"\0") or b"\0" in raw[:-1]:
            raise FdtError(f"property {name!r} of {self.name or '/'!r} is no file name")
        return os.fsdecode(raw[:-1])

    def set_path(self, name: str, value: str) -> None:
        """Set a property to a file name."""
        self.properties[name] = os.fsencode(value) + b"\0"

    def set_data(self, name: str, value: bytes) -> None:
        """Set a property to bytes."""
        self.properties[name] = value

    def u32s(self, name: str) -> list[int]:
        """Return any number of cells; FdtError if there is a part of one."""
        raw = self.data(name)
        if len(raw) % _U32.size:
            raise FdtError(f"property {name!r} of {self.name or '/'!r} has {len(raw)} bytes")
        return [int(number) for (number,) in _U32.iter_unpack(raw)]

    def set_u32s(self, name: str, values: list[int]) -> None:
        """Set a property to one cell a number."""
        self.properties[name] = struct.pack(f">{len(values)}I", *values)

    def set_u32(self, name: str, value: int) -> None:
        """Set a property to one cell."""
        self.properties[name] = _U32.pack(value)

    def set_u64(self, name: str, value: int) -> None:
        """Set a property to two cells."""
        self.properties[name] = _U64.pack(value)

    def set_u64s(self, name: str, values: list[int]) -> None:
        """Set a property to two cells a number."""
        self.properties[name] = struct.pack(f">{len(values)}Q", *values)

    def set_text(self, name: str, value: str) -> None:
        """Set a property to one string; FdtError if it has a NUL or is not UTF-8."""
        self.set_texts(name, [value])

    def set_texts(self, name: str, values: list[str]) -> None:
        """Set a property to a list of strings; FdtError as for `set_text`."""
        try:
            raw = "".join(f"{value}\0" for value in values).encode()
        except UnicodeEncodeError:
            raise FdtError(f"{values!r} is not UTF-8", remedy="give it a UTF-8 name") from None
        if raw.count(b"\0") != len(values):
            raise FdtError(f"{values!r} has a NUL", remedy="leave it out")
        self.properties[name] = raw

    def _sized(self, name: str, size: int) -> bytes:
        raw = self.data(name)
        if len(raw) != size:
            raise FdtError(
                f"property {name!r} of {self.name or '/'!r} has {len(raw)} bytes, not {size}"
            )
        return raw
