"""Trees to blobs and back (Devicetree Specification, chapter 5: version 17).

libfdt judges every blob, ours and others' (`fdt_check_full`: bounds, nesting, tokens, names), before a byte of it is
used. The walk through what it found good is ours: pylibfdt copies the whole blob at each access, so 10,000 nodes took
minutes, and its sequential writer takes ten times as long as this one.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import libfdt

from fdbox.errors import FdtError
from fdbox.fdt.tree import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

# struct fdt_header { magic, totalsize, off_dt_struct, off_dt_strings, off_mem_rsvmap, version, last_comp_version,
#                     boot_cpuid_phys, size_dt_strings, size_dt_struct }, all big-endian 32-bit
_HEADER = struct.Struct(">10I")
_MAGIC = 0xD00DFEED
_VERSION = 17
_COMPATIBLE_VERSION = 16
_CELL = struct.Struct(">I")
_PROPERTY = struct.Struct(">III")  # FDT_PROP, len, nameoff
_NO_RESERVATIONS = bytes(16)
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9

#: Nothing of ours is deeper than 3; what is, is hostile.
MAX_DEPTH = 8
_NAME = re.compile(r"[A-Za-z0-9,._+?#@-]{1,64}")


def write(root: Node) -> bytes:
    """Return the tree as a blob.

    Raises:
        FdtError: a name cannot stand in a device tree, or a node has two children of one name.
    """
    body = bytearray()
    strings: dict[str, int] = {}
    _write_node(root, body, strings, 0, 0)
    body += _CELL.pack(_END)
    names = b"".join(name.encode() + b"\0" for name in strings)
    start = _HEADER.size + len(_NO_RESERVATIONS)
    blob = (
        _HEADER.pack(
            _MAGIC,
            start + len(body) + len(names),
            start,
            start + len(body),
            _HEADER.size,
            _VERSION,
            _COMPATIBLE_VERSION,
            0,
            len(names),
            len(body),
        )
        + _NO_RESERVATIONS
        + bytes(body)
        + names
    )
    _judge(blob)
    return blob


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise FdtError(f"{name!r} cannot be a name in a device tree")
    return name


def _write_node(
    node: Node, body: bytearray, strings: dict[str, int], depth: int, end_of_strings: int
) -> int:
    """Append a node; return the length of the strings so far."""
    if depth >= MAX_DEPTH:
        raise FdtError(f"node {node.name!r} is {depth + 1} deep, and {MAX_DEPTH} is the limit")
    name = _checked(node.name) if depth else ""
    body += _CELL.pack(_BEGIN_NODE) + _padded(name.encode() + b"\0")
    for key, value in node.properties.items():
        if key not in strings:
            strings[_checked(key)] = end_of_strings
            end_of_strings += len(key) + 1
        body += _PROPERTY.pack(_PROP, len(value), strings[key]) + _padded(value)
    if len({child.name for child in node.children}) != len(node.children):
        raise FdtError(f"node {node.name or '/'!r} has two children of one name")
    for child in node.children:
        end_of_strings = _write_node(child, body, strings, depth + 1, end_of_strings)
    body += _CELL.pack(_END_NODE)
    return end_of_strings


def read(blob: bytes) -> Node:
    """Return the tree in a blob, which may come from anybody.

    Raises:
        FdtError: it is not exactly one whole blob, or not what we could have written.
    """
    _judge(blob)
    header = _HEADER.unpack_from(blob)
    if header[1] != len(blob):
        raise FdtError(f"the blob says it has {header[1]} bytes, and has {len(blob)}")
    names = blob[header[3] : header[3] + header[8]]
    return _build(_tokens(blob, header[2], names))


def _build(tokens: Iterator[tuple[int, str, bytes]]) -> Node:
    top = Node("")  # holds the root, so that every node has a parent
    stack = [top]
    for token, name, value in tokens:
        if token == _PROP:
            if name in stack[-1].properties:
                raise FdtError(f"property {name!r} is there twice")
            stack[-1].properties[name] = value
        elif token == _END_NODE:
            stack.pop()
        elif len(stack) > MAX_DEPTH:
            raise FdtError(f"the tree is deeper than {MAX_DEPTH}")
        else:
            stack.append(stack[-1].add(name))
    if len(top.children) != 1:  # the one thing that libfdt lets pass
        raise FdtError("the tree has no root")
    return top.children[0]


def _judge(blob: bytes) -> None:
    if len(blob) < _HEADER.size or _HEADER.unpack_from(blob)[5] != _VERSION:
        raise FdtError(f"not a device tree blob of version {_VERSION}")
    # libfdt takes a bytearray as its pointer, and never reads past the length given.
    error: int = libfdt.fdt_check_full(bytearray(blob), len(blob))
    if error:
        raise FdtError(f"not a device tree blob: libfdt says {libfdt.strerror(error)}")


def _tokens(blob: bytes, at: int, names: bytes) -> Iterator[tuple[int, str, bytes]]:
    """Yield (token, name, value) of a structure block that libfdt found good."""
    while True:
        (token,) = _CELL.unpack_from(blob, at)
        if token == _BEGIN_NODE:
            end = blob.index(b"\0", at + 4)
            yield token, _decoded(blob[at + 4 : end]), b""
            at = (end + 4) & ~3  # past the NUL, to the next cell
        elif token == _PROP:
            _, length, offset = _PROPERTY.unpack_from(blob, at)
            at += _PROPERTY.size
            name = names[offset : names.index(b"\0", offset)]
            yield token, _decoded(name), blob[at : at + length]
            at += (length + 3) & ~3
        elif token == _END:
            return
        else:
            if token == _END_NODE:
                yield token, "", b""
            at += 4


def _decoded(name: bytes) -> str:
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise FdtError(f"{name!r} cannot be a name in a device tree") from None
