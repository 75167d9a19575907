from __future__ import annotations

import struct

import libfdt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdbox.errors import FdtError
from fdbox.fdt import blob
from fdbox.fdt.tree import Node

NAMES = st.from_regex(r"[a-z][a-z0-9@,-]{0,20}", fullmatch=True)


@st.composite
def trees(draw: st.DrawFn, depth: int = 0) -> Node:
    node = Node("" if depth == 0 else draw(NAMES))
    node.properties = draw(st.dictionaries(NAMES, st.binary(max_size=40), max_size=4))
    if depth < 3:
        children = draw(st.lists(trees(depth + 1), max_size=3, unique_by=lambda child: child.name))
        node.children = children
    return node


def sample() -> Node:
    root = Node("")
    root.set_text("compatible", "fdbox,test-v1")
    child = root.add("memory@0")
    child.set_u32("mode", 0o600)
    child.set_u64("size", 1 << 40)
    child.set_u64s("extents", [0, 4096, 1 << 33, 1])
    child.set_texts("names", ["a", "ö", ""])
    child.set_data("raw", b"")
    return root


@given(trees())
def test_what_is_written_is_read(tree: Node) -> None:
    assert blob.read(blob.write(tree)) == tree


def test_libfdt_reads_what_we_write() -> None:
    fdt = libfdt.FdtRo(blob.write(sample()))
    node = fdt.path_offset("/memory@0")
    assert fdt.getprop(node, "mode").as_uint32() == 0o600
    assert fdt.getprop(node, "size").as_uint64() == 1 << 40


def test_we_read_what_libfdt_writes() -> None:
    writer = libfdt.FdtSw()
    writer.finish_reservemap()
    with writer.add_node(""):
        writer.property_string("compatible", "x")
        with writer.add_node("memory@0"):
            writer.property_u32("mode", 7)
    fdt = writer.as_fdt()
    fdt.pack()
    root = blob.read(bytes(fdt.as_bytearray()))
    assert root.text("compatible") == "x"
    assert root.child("memory@0").u32("mode") == 7


def test_properties_come_back_as_they_were_set() -> None:
    child = blob.read(blob.write(sample())).child("memory@0")
    assert child.u64s("extents") == [0, 4096, 1 << 33, 1]
    assert child.texts("names") == ["a", "ö", ""]
    assert child.texts("raw") == []
    assert child.has("raw")
    assert not child.has("other")


@pytest.mark.parametrize(
    "access",
    [
        lambda node: node.child("none"),
        lambda node: node.data("none"),
        lambda node: node.u32("size"),
        lambda node: node.u64("mode"),
        lambda node: node.u64s("mode"),
        lambda node: node.text("names"),
        lambda node: node.text("raw"),
        lambda node: node.text("extents"),
        lambda node: node.text("bad"),
    ],
)
def test_what_is_not_there_is_named(access: object) -> None:
    node = sample().children[0]
    node.set_data("bad", b"\xff\0")
    with pytest.raises(FdtError):
        access(node)  # type: ignore[operator]


@pytest.mark.parametrize("text", ["a\0b", "\udc80"])
def test_text_that_cannot_be_stored_is_refused(text: str) -> None:
    with pytest.raises(FdtError):
        Node("").set_text("name", text)


def test_trees_that_cannot_be_are_refused() -> None:
    twins = Node("", children=[Node("a"), Node("a")])
    badly_named = Node("", children=[Node("a/b")])
    bad_key = Node("", {"a b": b""})
    deep = root = Node("")
    for _ in range(blob.MAX_DEPTH):
        deep = deep.add("a")
    for tree in (twins, badly_named, bad_key, root):
        with pytest.raises(FdtError):
            blob.write(tree)


def _cells(*cells: int | bytes) -> bytes:
    return b"".join(cell if isinstance(cell, bytes) else struct.pack(">I", cell) for cell in cells)


def _blob(body: bytes, names: bytes = b"a\0") -> bytes:
    start = 56
    sizes = (start + len(body) + len(names), start, start + len(body), 40, 17, 16, 0)
    header = struct.pack(">10I", 0xD00DFEED, *sizes, len(names), len(body))
    return header + bytes(16) + body + names


BEGIN, END = _cells(1, bytes(4)), _cells(2)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(100),
        blob.write(sample()) + b"\0",
        _blob(_cells(1, bytes(4), 3, 0, 0, 3, 0, 0, 2, 9)),  # a property twice
        _blob(BEGIN + _cells(1, b"a\0\0\0") * 9 + END * 10 + _cells(9)),  # too deep
        _blob(_cells(1, bytes(4), 1, b"\xff\0\0\0", 2, 2, 9)),  # a name that is not ASCII
        _blob(_cells(1, bytes(4), 9)),  # never closed
    ],
    ids=["empty", "zeros", "trailing", "twice", "deep", "name", "open"],
)
def test_hostile_blobs_are_refused(raw: bytes) -> None:
    with pytest.raises(FdtError):
        blob.read(raw)


def test_a_nop_is_skipped() -> None:
    assert blob.read(_blob(_cells(4) + BEGIN + _cells(4) + END + _cells(9))) == Node("")


@pytest.mark.slow
def test_no_flipped_bit_and_no_cut_does_anything_but_fail_cleanly() -> None:
    good = blob.write(sample())
    damaged = [good[:length] for length in range(len(good))]
    for at in range(len(good)):
        damaged += [good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :] for bit in range(8)]
    refused = 0
    for raw in damaged:
        try:
            blob.read(raw)
        except FdtError:
            refused += 1
    assert refused > len(good)  # every cut, and most of what is structure


@given(st.binary(max_size=400))
def test_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(FdtError):
        blob.read(raw)
    with pytest.raises(FdtError):
        blob.read(struct.pack(">10I", 0xD00DFEED, 40 + len(raw), 40, 40, 40, 17, 16, 0, 0, 0) + raw)
