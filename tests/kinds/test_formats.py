"""The bindings in docs/formats, judged by dtschema, against what the kinds really write and read."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import dtschema
import pytest

from fdbox.errors import FdboxError, ManifestInvalid
from fdbox.fdt import blob
from fdbox.handover import manifest
from fdbox.handover.carriers import imagefile
from fdbox.handover.carriers.chunks import Chunk
from fdbox.handover.manifest import Index, Manifest, SavedEntry
from fdbox.kinds import handed, registry
from fdbox.kinds.eventfd import Eventfd
from fdbox.kinds.freight import Arrivals, Freight, Made, Place
from fdbox.kinds.look import OpenFile, look
from fdbox.linux.fd import OwnedFd, dup
from fdbox.model import BoxKey
from fdbox.ports import Parcel
from tests.fakes.carrier import FakeKernel
from tests.kinds.conformance import World
from tests.kinds.samples import Sample, every_sample
from tests.kinds.test_eventfd import SAMPLES as EVENTFDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.fdt.tree import Node
    from fdbox.handover.seal import Part, SealedBox

FORMATS = Path(__file__).parent.parent.parent / "docs/formats"
FILES = sorted(FORMATS.glob("*.yaml"))
OURS = {manifest.MANIFEST, manifest.INDEX, imagefile.COMPATIBLE}
MANY = 64  # bytes
BOOT = "6ecc40b4-9a07-4c4b-9b5c-b2c2a1f0d0ce"
INDEX = Index(BOOT, (("fdbox-1", BoxKey(0, "one")), ("fdbox-2", BoxKey(1000, "two"))))
MANIFEST = Manifest(
    BOOT,
    BoxKey(0, "one"),
    (SavedEntry("entry", "label", 0, 0), SavedEntry("dup", "", 0, 0)),
    (("fdbox,eventfd-v1", 1),),
)
IMAGE = imagefile.table(
    [Parcel(0, 0, [(0, 9 << 20)])],
    {0: [Chunk(4096 + (number << 22), 1 << 20, 1, bytes(16)) for number in range(3)]},
)
#: what a parcel without bytes does not have
OF_CHUNKS = {"offsets", "stored", "codecs", "checksums"}

by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
by_sample = pytest.mark.parametrize(
    "sample",
    [
        pytest.param(one, marks=[pytest.mark.root] if one.root else [], id=one.name)
        for one in every_sample()
        if not one.vm_only
    ],
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, kernel=FakeKernel(BOOT))
    yield made
    made.close()


# --- what dtschema says of a tree --------------------------------------------------------------------------------------


@functools.cache
def validator() -> Any:  # noqa: ANN401 - dtschema has no types
    return dtschema.DTValidator([str(FORMATS)])


def wrong(tree: Node) -> list[str]:
    """Return what is wrong with a tree by the binding of its `compatible`, which must exist."""
    assert tree.text("compatible") in validator().compat_map
    errors: list[str] = []
    (decoded,) = validator().decode_dtb(blob.write(simplified(tree)), errors)
    decoded["$nodename"] = ["/"]
    found = validator().iter_errors(decoded, compatible_match=True)
    return errors + [f"{list(error.absolute_path)}: {error.message}" for error in found]


def simplified(tree: Node) -> Node:
    """Return a copy in which text is ASCII, and bytes are few.

    dtschema takes no other text (ours is UTF-8, or the name of a file), and looks at each byte by itself.
    """
    copy = blob.read(blob.write(tree))
    for node in nodes(copy):
        for name, value in node.properties.items():
            if is_text(name):
                node.properties[name] = bytes(min(byte, 0x7F) for byte in value)
            elif is_bytes(name):
                node.properties[name] = value[:MANY]
    return copy


def is_text(name: str) -> bool:
    return any(kind.startswith("string") for kind in validator().property_get_type(name))


def is_bytes(name: str) -> bool:
    return "uint8-array" in validator().property_get_type(name)


def nodes(tree: Node) -> Iterator[Node]:
    yield tree
    for child in tree.children:
        yield from nodes(child)


# --- the bindings themselves -------------------------------------------------------------------------------------------


@by_file
def test_a_binding_is_one(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binding = dtschema.DTSchema(str(path))
    assert [error.message for error in binding.iter_errors()] == []
    binding.check_schema_refs()  # which prints what it finds
    assert capsys.readouterr() == ("", "")


@by_file
def test_a_binding_is_called_as_what_it_describes(path: Path) -> None:
    binding = dtschema.DTSchema(str(path))
    described = binding.get("properties", {}).get("compatible", {"const": path.stem})
    assert described["const"] == path.stem


def test_every_format_has_a_binding_and_every_binding_a_format() -> None:
    written = {kind.compatible for kind in registry.CARRIED.values()} | OURS
    read = {name for kind in registry.CARRIED.values() for name in kind.reads} | OURS
    described = {name for name in validator().compat_map if name.startswith("fdbox,")}
    assert written <= described <= read


@dataclass(frozen=True)
class Property:
    """A property as a binding has it."""

    name: str
    binding: str
    types: frozenset[str]
    described: bool


def properties() -> list[Property]:
    return [one for path in FILES for one in _properties(dtschema.DTSchema(str(path)), path.stem)]


def _properties(schema: Any, binding: str) -> Iterator[Property]:  # noqa: ANN401 - a part of a YAML document
    if isinstance(schema, list):
        for part in schema:
            yield from _properties(part, binding)
    if not isinstance(schema, dict):
        return
    for name, part in schema.get("properties", {}).items():
        if types := frozenset(_types(part)):
            yield Property(name, binding, types, "description" in part)
    for part in schema.values():
        yield from _properties(part, binding)


def _types(schema: Any) -> Iterator[str]:  # noqa: ANN401 - a part of a YAML document
    if isinstance(schema, list):
        for part in schema:
            yield from _types(part)
    elif isinstance(schema, dict):
        reference = schema.get("$ref", "")
        if "types.yaml" in reference:
            yield reference.rpartition("/")[2]
        for part in schema.values():
            yield from _types(part)


def test_a_property_has_one_type_wherever_it_stands() -> None:
    """Only what may be empty has two: dtschema takes an empty property for a flag."""
    types: dict[str, set[str]] = {}
    for one in properties():
        types.setdefault(one.name, set()).update(one.types - {"flag"})
    assert {name: found for name, found in types.items() if len(found) != 1} == {}


def test_every_property_is_described() -> None:
    assert [(one.binding, one.name) for one in properties() if not one.described] == []


# --- the trees that are written ----------------------------------------------------------------------------------------


def trees(sealed: SealedBox) -> list[Node]:
    return [manifest.fetch(sealed.manifest.fileno()), *(part.component for part in sealed.parts)]


@by_sample
def test_what_is_written_is_as_its_binding_says(sample: Sample, world: World) -> None:
    sealed = world.seal(world.make(sample))
    try:
        for tree in trees(sealed):
            assert wrong(tree) == []
    finally:
        sealed.thaw()


@pytest.mark.parametrize("kind", handed.KINDS, ids=lambda kind: kind.name)
def test_what_is_handed_over_is_as_its_binding_says(kind: handed.Handed) -> None:
    """Most machines have none of these: a counter stands for it."""
    with OwnedFd(os.eventfd(0)) as fd:
        seen = look(fd.fileno())
        file = OpenFile(seen, kind.describe(seen), ("entry",))
        tree = kind.save([file], Freight(FakeKernel(), 0))
    tree.set_text("compatible", kind.compatible)
    assert wrong(tree) == []
    del tree.child("file@0").properties["token"]
    assert wrong(tree)


@by_sample
def test_what_is_not_as_its_binding_says_is_wrong(sample: Sample, world: World) -> None:
    sealed = world.seal(world.make(sample))
    try:
        for part in sealed.parts:
            assert list(unnoticed(part.component)) == []
    finally:
        sealed.thaw()


@pytest.mark.parametrize(
    "tree",
    [manifest.write_index(INDEX), manifest.write_manifest(MANIFEST), IMAGE],
    ids=["index", "manifest", "image"],
)
def test_a_tree_of_the_box_that_is_not_as_its_binding_says_is_wrong(tree: Node) -> None:
    assert wrong(tree) == []
    assert list(unnoticed(tree)) == []
    for node in nodes(tree):
        for name in node.properties.keys() - {"compatible", *OF_CHUNKS}:
            value = node.properties.pop(name)
            assert wrong(tree), f"{node.name} without {name}"
            node.set_data(name, value)


def unnoticed(tree: Node) -> Iterator[str]:
    """Yield each change that a binding lets pass: a property is a byte longer, or one more is there.

    Bytes can be of any size.
    """
    for node in nodes(tree):
        for name, value in list(node.properties.items()):
            if name != "compatible" and not is_bytes(name):
                node.set_data(name, value + b"\1")
                if not wrong(tree):
                    yield f"{node.name} with a longer {name}"
                node.set_data(name, value)
        node.set_u32("unlisted", 1)
        if not wrong(tree):
            yield f"{node.name} with an unlisted property"
        del node.properties["unlisted"]


@by_sample
def test_a_binding_requires_what_its_kind_requires(sample: Sample, world: World) -> None:
    sealed = world.seal(world.make(sample))
    arrivals = arrivals_of(sealed, world)
    try:
        for part in sealed.parts:
            for node in nodes(part.component):
                for name, value in list(node.properties.items()):
                    del node.properties[name]
                    missed = f"{node.name!r} has no property {name!r}"
                    if missed in refusals(part, arrivals):
                        assert wrong(part.component), missed
                    node.set_data(name, value)
    finally:
        sealed.thaw()


def arrivals_of(sealed: SealedBox, world: World) -> Arrivals:
    made = {
        Place(number, index): file.fd
        for number, part in enumerate(sealed.parts)
        for index, file in enumerate(part.files)
    }
    return Arrivals(world.kernel, lambda token: dup(sealed.freight.sent(token)), made)


def refusals(part: Part, arrivals: Arrivals) -> str:
    """Return what is said of a component that is loaded; what is made of it is dropped."""
    said = []
    try:
        for loaded in part.kind.load(part.component, arrivals):
            if isinstance(loaded, Made):
                loaded.fd.close()
            else:
                said.append(loaded.message)
    except FdboxError as error:
        said.append(error.message)
    return "\n".join(said)


@by_sample
def test_what_a_reader_does_not_know_it_ignores(sample: Sample, world: World) -> None:
    sealed = world.seal(world.make(sample))
    arrivals = arrivals_of(sealed, world)
    try:
        for part in sealed.parts:
            before = refusals(part, arrivals)
            for node in list(nodes(part.component)):
                node.set_u32("unlisted", 1)
                node.add("unlisted@0")
            assert refusals(part, arrivals) == before
    finally:
        sealed.thaw()


# --- the next version --------------------------------------------------------------------------------------------------


class NextEventfd(Eventfd):
    """The same, by a later fdbox that has changed the format and still reads the one before."""

    compatible = "fdbox,eventfd-v2"
    older: ClassVar[tuple[str, ...]] = ("fdbox,eventfd-v1",)


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Have the later fdbox run; what is undone is the one before."""
    with monkeypatch.context() as later:
        later.setitem(registry.CARRIED, "eventfd", NextEventfd())
        yield later


def test_an_older_format_is_loaded(world: World, upgrade: pytest.MonkeyPatch) -> None:
    sample = EVENTFDS[1]
    with pytest.MonkeyPatch.context() as before:
        before.setitem(registry.CARRIED, "eventfd", Eventfd())
        expected = world.expected(sample)
        world.jump(sample, world.make(sample))
    entries, losses = world.arrive()
    assert losses == []
    assert world.observe(sample, entries) == expected


def test_a_newer_format_is_refused_by_name(world: World, upgrade: pytest.MonkeyPatch) -> None:
    world.jump(EVENTFDS[1], world.make(EVENTFDS[1]))
    upgrade.undo()
    entries, (loss,) = world.arrive()
    assert entries == {}
    assert loss.entry == "eventfd"
    assert "'fdbox,eventfd-v2', and this fdbox knows 'fdbox,eventfd-v1'" in loss.reason


def test_a_format_of_a_kind_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ManifestInvalid, match="'fdbox,other-v1', and this fdbox does not know"):
        registry.by_compatible("fdbox,other-v1")


@pytest.mark.parametrize("name", list(registry.CARRIED))
def test_every_kind_reads_what_it_writes_and_nothing_newer(name: str) -> None:
    kind = registry.CARRIED[name]
    stem, _, version = kind.compatible.rpartition("-v")
    assert stem == f"fdbox,{name}"
    assert [registry.by_compatible(one) for one in kind.reads] == [kind] * len(kind.reads)
    with pytest.raises(ManifestInvalid, match=f"knows '{kind.compatible}'"):
        registry.by_compatible(f"{stem}-v{int(version) + 1}")
