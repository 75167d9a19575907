"""What one incarnation writes down for the next: the manifest of a box, its components, and the index of all boxes.

Each is an FDT with its SHA-256 behind it, in a memfd of its own. docs/formats has the bindings.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdbox.errors import FdtError, ManifestInvalid, SameIncarnation
from fdbox.fdt import blob
from fdbox.fdt.tree import Node
from fdbox.linux import memfd
from fdbox.model import BoxKey

if TYPE_CHECKING:
    from fdbox.linux.fd import OwnedFd

MANIFEST = "fdbox,manifest-v1"
INDEX = "fdbox,index-v1"

#: Where the next incarnation begins to look: the session of the index, and the token of an index or a manifest in its
#: session.
INDEX_SESSION = "fdbox"
FIRST_TOKEN = 0

_DIGEST = 32
#: 10,000 entries take 2 MB; more than this is hostile
MAX_BLOB = 256 << 20


@dataclass(frozen=True, slots=True)
class SavedEntry:
    """One entry: which file of which component it is. `label` is kept because a memfd's own name is lost."""

    name: str
    label: str
    component: int
    file: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A box as it left. `components` are (compatible, token), in the order in which they have to be loaded."""

    incarnation: str
    box: BoxKey
    entries: tuple[SavedEntry, ...]
    components: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Index:
    """All sealed boxes: the carrier's name for each."""

    incarnation: str
    boxes: tuple[tuple[str, BoxKey], ...]


def pack(root: Node) -> bytes:
    """Return a tree as a blob, and its checksum behind it."""
    raw = blob.write(root)
    return raw + hashlib.sha256(raw).digest()


def unpack(raw: bytes) -> Node:
    """Return the tree that `pack` has packed.

    Raises:
        ManifestInvalid: a bit of it is not as it was.
    """
    if hashlib.sha256(raw[:-_DIGEST]).digest() != raw[-_DIGEST:]:
        raise ManifestInvalid("the manifest is damaged: its checksum does not fit")
    try:
        return blob.read(raw[:-_DIGEST])
    except FdtError as error:
        raise ManifestInvalid(f"the manifest is damaged: {error.message}") from error


def store(root: Node) -> OwnedFd:
    """Return a memfd that holds a tree and its checksum."""
    raw = pack(root)
    fd = memfd.create("fdbox-manifest")
    try:
        written = 0
        while written < len(raw):
            written += os.pwrite(fd.fileno(), raw[written:], written)
    except BaseException:
        fd.close()
        raise
    return fd


def fetch(fd: int) -> Node:
    """Return the tree that `store` put into a memfd; errors as `unpack`."""
    size = os.fstat(fd).st_size
    if not _DIGEST < size <= MAX_BLOB:
        raise ManifestInvalid(f"a manifest of {size} bytes cannot be")
    return unpack(os.pread(fd, size, 0))


def check_incarnation(saved_by: str, running: str) -> None:
    """Let through only what another kernel has saved. This is the one place where it is asked; every loader comes here.

    The kernel that saved a thing still has the original: loading it as well would make one thing exist twice.

    Raises:
        SameIncarnation: this kernel has saved it.
    """
    if saved_by == running:
        raise SameIncarnation(f"this was saved by the kernel that runs now ({running})")


def write_manifest(manifest: Manifest) -> Node:
    """Return the manifest's tree."""
    root = _root(MANIFEST, manifest.incarnation)
    _write_box(root, manifest.box)
    for index, (compatible, token) in enumerate(manifest.components):
        node = root.add(f"component@{index}")
        node.set_text("compatible", compatible)
        node.set_u64("token", token)
    for index, entry in enumerate(manifest.entries):
        node = root.add(f"entry@{index}")
        node.set_text("name", entry.name)
        node.set_text("label", entry.label)
        node.set_u32("component", entry.component)
        node.set_u32("file", entry.file)
    return root


def read_manifest(root: Node, running: str) -> Manifest:
    """Return the manifest in a tree.

    Raises:
        ManifestInvalid: it is of another version, or not whole.
        SameIncarnation: the kernel that runs now has written it.
    """
    incarnation = _check_root(root, MANIFEST, running)
    try:
        return Manifest(
            incarnation,
            _read_box(root),
            tuple(_read_entry(node) for node in _named(root, "entry")),
            tuple(
                (node.text("compatible"), node.u64("token")) for node in _named(root, "component")
            ),
        )
    except FdtError as error:
        raise ManifestInvalid(f"the manifest is not whole: {error.message}") from error


def write_index(index: Index) -> Node:
    """Return the index's tree."""
    root = _root(INDEX, index.incarnation)
    for number, (session, box) in enumerate(index.boxes):
        node = root.add(f"box@{number}")
        node.set_text("session", session)
        _write_box(node, box)
    return root


def read_index(root: Node, running: str) -> Index:
    """Return the index in a tree; errors as for `read_manifest`."""
    incarnation = _check_root(root, INDEX, running)
    try:
        boxes = tuple((node.text("session"), _read_box(node)) for node in _named(root, "box"))
    except FdtError as error:
        raise ManifestInvalid(f"the index is not whole: {error.message}") from error
    return Index(incarnation, boxes)


def _root(compatible: str, incarnation: str) -> Node:
    root = Node("")
    root.set_text("compatible", compatible)
    root.set_text("incarnation", incarnation)
    return root


def _check_root(root: Node, compatible: str, running: str) -> str:
    try:
        found, incarnation = root.text("compatible"), root.text("incarnation")
    except FdtError as error:
        raise ManifestInvalid(f"this is no manifest: {error.message}") from error
    if found != compatible:
        raise ManifestInvalid(f"this is {found!r}, and this fdbox knows {compatible!r}")
    check_incarnation(incarnation, running)
    return incarnation


def _write_box(node: Node, box: BoxKey) -> None:
    node.set_text("box", box.name)
    node.set_u32("owner", box.owner)


def _read_box(node: Node) -> BoxKey:
    return BoxKey(node.u32("owner"), node.text("box"))


def _read_entry(node: Node) -> SavedEntry:
    return SavedEntry(
        node.text("name"), node.text("label"), node.u32("component"), node.u32("file")
    )


def _named(root: Node, name: str) -> list[Node]:
    return [node for node in root.children if node.name.partition("@")[0] == name]
