"""What every kind has to show: each sample goes through each case. `test_conformance.py` runs it for all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fdbox.errors import FdboxError
from fdbox.fdt import blob
from fdbox.handover import arrive, seal
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.kinds import registry
from fdbox.kinds.freight import Arrivals, Made
from fdbox.kinds.look import look
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import BoxKey, Description
from tests.fakes.carrier import FakeCarrier, FakeKernel

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from fdbox.fdt.tree import Node
    from fdbox.handover.seal import SealedBox
    from fdbox.ports import Carrier
    from tests.kinds.samples import Entries, Sample

BOX = BoxKey(0, "conformance")


@dataclass
class World:
    """A carrier, a kernel, and a folder for the samples' files."""

    folder: Path
    carrier: FakeCarrier = field(default_factory=FakeCarrier)
    kernel: FakeKernel = field(default_factory=FakeKernel)
    made: list[Entries] = field(default_factory=list)
    #: what may have left something behind, and the folder it was made in
    used: list[tuple[Sample, Path]] = field(default_factory=list)

    def make(self, sample: Sample, name: str = "own") -> Entries:
        """Return a sample, made anew in a folder of its own."""
        folder = self.folder / name
        folder.mkdir()
        self.used.append((sample, folder))
        entries = sample.make(folder)
        self.made.append(entries)
        assert set(entries) == set(sample.kinds)
        return entries

    def observe(self, sample: Sample, entries: Entries, name: str = "own") -> Any:  # noqa: ANN401 - whatever JSON can hold
        return sample.observe(numbers(entries), self.folder / name)

    def expected(self, sample: Sample) -> Any:  # noqa: ANN401 - whatever JSON can hold
        """Return what is seen of a twin that nothing ever happened to."""
        seen = self.observe(sample, twin := self.make(sample, "twin"), "twin")
        self.let_go(twin)
        sample.reboot(self.folder / "twin")
        return seen

    @property
    def by(self) -> Carrier[OwnedFd]:
        """What boxes cross by."""
        return self.carrier

    def cross(self) -> None:
        """Start the next kernel."""
        self.carrier.cross(self.kernel)

    def seal(self, entries: Entries) -> SealedBox:
        return seal.seal(BOX, described(entries), self.by, self.kernel)

    def jump(self, sample: Sample, entries: Entries) -> None:
        """Seal, end everything that this kernel holds, and start the next one."""
        sealed = self.seal(entries)
        index = seal.write_index([sealed], self.by, self.kernel)
        assert index is not None
        self.cross()
        sealed.freight.close()
        sealed.manifest.close()
        self.let_go(entries)
        sample.reboot(self.folder / "own")

    def arrive(self) -> tuple[Entries, list[arrive.Loss]]:
        entries: Entries = {}
        losses: list[arrive.Loss] = []
        for step in arrive.arrive(self.by, self.kernel, arrive.Past()):
            if isinstance(step, arrive.BoxCame):
                entries |= {name: one.fd for name, one in step.entries.items()}
                losses += step.losses
            elif isinstance(step, arrive.Loss):
                losses.append(step)
        self.made.append(entries)
        return entries, losses

    def let_go(self, entries: Entries) -> None:
        close_all(entries.values())
        self.made.remove(entries)

    def close(self) -> None:
        for entries in self.made:
            close_all(entries.values())
        self.carrier.switch_off()
        for sample, folder in self.used:
            sample.reboot(folder)


@dataclass
class ImageWorld(World):
    """The same, with the real image carrier."""

    _image: ImageCarrier | None = None

    @property
    def by(self) -> Carrier[OwnedFd]:  # type: ignore[explicit-override]  # typing.override is Python 3.12
        if self._image is None:
            self._image = ImageCarrier(self.folder / "images", self.kernel)
        return self._image

    def cross(self) -> None:  # type: ignore[explicit-override]  # as above
        super().cross()
        self._drop()

    def close(self) -> None:  # type: ignore[explicit-override]  # as above
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._image is not None:
            self._image.close()
            self._image = None


def numbers(entries: Entries) -> dict[str, int]:
    return {name: fd.fileno() for name, fd in entries.items()}


def described(entries: Entries) -> dict[str, tuple[int, Description]]:
    found = {}
    for name, fd in entries.items():
        seen = look(fd.fileno())
        found[name] = (fd.fileno(), registry.recognise(seen).describe(seen))
    return found


def kinds_of(fd: int) -> list[str]:
    """Return every kind that says it is its own; there must be one."""
    seen = look(fd)
    return [kind.name for kind in registry.KINDS if kind.recognise(seen)]


# --- hostile components ----------------------------------------------------------------------------------------------


def load_raw(kind: str, raw: bytes, world: World, made: Mapping[Any, int]) -> int:
    """Load a component that may be hostile; return how many files came of it. Only errors of ours may come out."""
    count = 0
    try:
        tree = blob.read(raw)
        for loaded in registry.CARRIED[kind].load(
            tree, Arrivals(world.kernel, _take_nothing, dict(made))
        ):
            if isinstance(loaded, Made):
                loaded.fd.close()
                count += 1
    except FdboxError:
        return count
    return count


def _take_nothing(token: int) -> OwnedFd:
    raise FdboxError(f"nothing came under {token}")


def mutants(component: Node, chance: random.Random, count: int) -> Iterator[bytes]:
    """Yield blobs that are a component with something wrong: bytes of the blob, or one property of the tree."""
    whole = blob.write(component)
    for number in range(count):
        if number % 2:
            yield _with_other_bytes(whole, chance)
        else:
            yield _with_another_property(whole, chance)


def _with_other_bytes(whole: bytes, chance: random.Random) -> bytes:
    raw = bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 8))):
        raw[chance.randrange(len(raw))] = chance.choice(
            (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
        )
    return bytes(raw) if chance.random() < 0.9 else bytes(raw[: chance.randrange(len(raw))])


def _with_another_property(whole: bytes, chance: random.Random) -> bytes:
    tree = blob.read(whole)
    nodes = [tree, *tree.children, *(deep for one in tree.children for deep in one.children)]
    node = chance.choice([one for one in nodes if one.properties])
    name = chance.choice(sorted(node.properties))
    value = node.properties[name]
    match chance.randrange(6):
        case 0:
            del node.properties[name]
        case 1:
            node.properties[name] = b""
        case 2:
            node.properties[name] = value[:-1]
        case 3:
            node.properties[name] = value + b"\0"
        case 4:
            node.properties[name] = bytes(chance.randrange(256) for _ in value)
        case _:
            node.properties[name] = b"\xff" * len(value)
    return blob.write(tree)
