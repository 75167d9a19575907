from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.carrier import SECOND, THIRD, FakeKernel
from tests.handover.home import Home, content_of, memory

from fdbox.errors import CannotCarry, FdboxError, KernelError, LateWrite, ManifestInvalid, NoRoom
from fdbox.handover import arrive, manifest
from fdbox.handover.carriers import chunks, image, imagefile
from fdbox.handover.carriers.chunks import Thrift
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.linux import files
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import BoxKey
from fdbox.ports import Parcel, ParcelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

BOX = BoxKey(1000, "cache")
MIB = 1 << 20


def written(folder: Path, *parcels: Parcel) -> OwnedFd:
    path = folder / f"{len(list(folder.iterdir()))}.image"
    with files.open_direct(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        imagefile.write(fd.fileno(), parcels)
        return fd.dup()


@pytest.mark.parametrize(
    "size", [0, 1, 4095, 4096, 4097, chunks.SIZE - 1, chunks.SIZE, 2 * chunks.SIZE + 5]
)
def test_what_is_written_is_read(size: int, tmp_path: Path) -> None:
    content = random.Random(size).randbytes(size)
    with memory(content) as fd, written(tmp_path, Parcel(fd.fileno(), 7)) as stored:
        found = imagefile.read(stored.fileno())
        with imagefile.to_memory(found[7], "again") as again:
            assert content_of(again.fileno()) == content


@given(
    pieces=st.lists(st.tuples(st.integers(0, 3 * MIB), st.integers(1, 3 * MIB)), max_size=4),
    seed=st.integers(0, 9),
)
def test_a_stream_is_its_extents_one_behind_the_other(
    pieces: list[tuple[int, int]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    extents, end = [], 0
    for gap, length in pieces:
        extents.append((end + gap, length))
        end += gap + length
    content = random.Random(seed).randbytes(end)
    folder = tmp_path_factory.mktemp("stream")
    with (
        memory(content) as fd,
        written(folder, Parcel(fd.fileno(), 1, extents)) as stored,
        imagefile.to_memory(imagefile.read(stored.fileno())[1], "again") as again,
    ):
        wanted = b"".join(content[at : at + length] for at, length in extents)
        assert content_of(again.fileno()) == wanted
    shutil.rmtree(folder)


def test_what_compresses_well_takes_less_and_comes_back(tmp_path: Path) -> None:
    content = b"the same again. " * (2 * MIB)
    slow_disk = Thrift(iter(range(1000)).__next__)
    slow_disk.note_written(1, 1000.0)
    path = tmp_path / "a"
    with memory(content) as fd, files.open_direct(path, os.O_RDWR | os.O_CREAT) as stored:
        writer = chunks.Writer(stored.fileno(), 4096, slow_disk)
        made = [*writer.write(chunks.cut(fd.fileno(), [(0, len(content))]))]
        assert {chunk.codec for chunk in made} == {chunks.ZSTD}
        assert writer.end < len(content) // 10
        again = imagefile.Stored(stored.fileno(), len(content), tuple(made))
        with imagefile.to_memory(again, "again") as back:
            assert content_of(back.fileno()) == content


@pytest.mark.parametrize(
    ("disk", "content", "pays"),
    [
        (1e6, b"\0" * MIB, True),  # a slow disk
        (1e12, b"\0" * MIB, False),  # a fast one
        (1e6, random.Random(1).randbytes(MIB), False),  # nothing to gain
    ],
)
def test_compressing_pays_where_it_takes_less_time(disk: float, content: bytes, pays: bool) -> None:
    now = 0.0

    def compress(data: memoryview) -> bytes:
        """Take 1 ns a byte."""
        nonlocal now
        now += len(data) * 1e-9
        return bytes(data) if any(data[:64]) else b"short"

    thrift = Thrift(lambda: now)
    thrift.note_written(int(disk), 1.0)
    assert (thrift.pack(memoryview(content), compress) is not None) == pays


def test_no_damaged_byte_is_ever_given_out(tmp_path: Path) -> None:
    content = random.Random(5).randbytes(9000)
    chance = random.Random(6)
    with memory(content) as fd:
        with written(tmp_path, Parcel(fd.fileno(), 1), Parcel(fd.fileno(), 2)) as stored:
            whole = content_of(stored.fileno())
        noticed = 0
        for _ in range(400):
            raw = bytearray(whole)
            if chance.random() < 0.2:
                del raw[chance.randrange(len(raw)) :]
            else:
                raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            with memory(bytes(raw)) as damaged:
                try:
                    for one in imagefile.read(damaged.fileno()).values():
                        with imagefile.to_memory(one, "again") as again:
                            assert content_of(again.fileno()) == content
                except ManifestInvalid:
                    noticed += 1
    assert noticed > 200  # the rest fell on what only fills a block


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    with memory(b"x" * 100) as fd, pytest.raises(KernelError, match="shorter"):
        written(tmp_path, Parcel(fd.fileno(), 1, [(0, 200)]))


# --- the folder ------------------------------------------------------------------------------------------------------


def test_boxes_arrive_in_the_next_incarnation_once(home: Home) -> None:
    home.box("a", x=b"one", y=b"two" * MIB)
    home.box("b", x=b"three")
    home.publish()
    home.boot()
    assert home.arrive() == ({"a/x": b"one", "a/y": b"two" * MIB, "b/x": b"three"}, [])
    assert home.arrive() == ({}, [])
    assert home.files() == []


def test_nothing_arrives_where_it_was_sealed(home: Home) -> None:
    home.box("a", x=b"one")
    home.publish()
    assert home.carrier.indexes() == []
    assert home.arrive() == ({}, [])


def test_what_no_index_names_does_not_arrive(home: Home) -> None:
    home.box("a", x=b"one")
    home.boot()
    assert home.arrive() == ({}, [])


def test_an_unsealed_box_stays_until_an_index_without_it_is_safe(home: Home) -> None:
    first, _ = home.box("a", x=b"one"), home.box("b", x=b"two")
    home.publish()
    before = home.files()
    home.unseal(first)
    assert home.files() == before
    home.publish()
    assert len(home.files()) == len(before) - 1
    home.boot()
    assert home.arrive() == ({"b/x": b"two"}, [])


def test_the_last_box_unsealed_leaves_nothing(home: Home) -> None:
    box = home.box("a", x=b"one")
    home.publish()
    home.unseal(box)
    home.publish()
    assert home.files() == []


def test_a_box_that_was_never_published_goes_at_once(home: Home) -> None:
    home.box("a", x=b"one")
    home.publish()
    before = home.files()
    home.unseal(home.box("b", x=b"two"))
    assert home.files() == before


def test_a_late_write_is_noticed(home: Home) -> None:
    box = home.box("a", x=b"a" * (9 * MIB))
    box.verify()
    os.pwrite(home.held[0].fileno(), b"b", 8 * MIB)
    with pytest.raises(LateWrite):
        box.verify()


def test_power_lost_while_boxes_arrive_loses_none(home: Home) -> None:
    home.box("a", x=b"one")
    home.box("b", x=b"two")
    home.publish()
    home.boot()
    steps = arrive.arrive(home.carrier, home.kernel, arrive.Past())
    for step in steps:
        if isinstance(step, arrive.BoxCame):
            close_all(one.fd for one in step.entries.values())
        if isinstance(step, arrive.Received):
            home.deliveries.append(step.delivery)
        if isinstance(step, arrive.Finished):
            break
    home.boot(THIRD)
    assert home.arrive() == ({"a/x": b"one", "b/x": b"two"}, [])
    assert home.files() == []


def test_a_damaged_box_is_kept_and_the_others_arrive(home: Home) -> None:
    content = random.Random(1).randbytes(15000)
    home.box("a", x=content, y=b"two")
    home.box("b", x=b"three")
    home.publish()
    path = next(path for path in home.directory.rglob("*.image") if content in path.read_bytes())
    whole = path.read_bytes()
    at = whole.index(content[:1000])
    path.write_bytes(whole[:at] + b"ONE" + whole[at + 3 :])
    home.boot()
    came, lost = home.arrive()
    # What is left of its box depends on the order: nothing wrong may come.
    assert came.items() >= {"b/x": b"three"}.items()
    assert "a/x" not in came
    assert "damaged" in lost[0]
    assert ".kept" in lost[0]
    assert [name for name in home.files() if name.endswith(".kept")]


def test_a_damaged_index_is_told_and_kept(home: Home) -> None:
    home.box("a", x=b"one")
    home.publish()
    index = next(home.directory.rglob("index"))
    index.write_bytes(index.read_bytes()[:-1])
    home.boot()
    came, lost = home.arrive()
    assert (came, len(lost)) == ({}, 1)
    assert len(home.files()) == 2


def test_a_new_process_replaces_what_the_one_before_has_left(home: Home) -> None:
    home.box("a", x=b"old")
    home.publish()
    home.end()
    home.carrier = ImageCarrier(home.directory, home.kernel)
    home.index = home.carrier.claim(has_past=True)
    home.box("a", x=b"new")
    home.publish()
    home.boot()
    assert home.arrive() == ({"a/x": b"new"}, [])
    assert home.files() == []


def test_a_new_process_that_seals_nothing_leaves_nothing(home: Home) -> None:
    home.box("a", x=b"old")
    home.publish()
    home.end()
    home.carrier = ImageCarrier(home.directory, home.kernel)
    home.index = home.carrier.claim(has_past=True)
    home.publish()
    assert home.files() == []


def test_what_a_lost_process_has_sealed_arrives_beside_the_new(home: Home) -> None:
    for number in range(3):
        home.box("a", x=b"%d" % number)
        home.publish()
        home.end()
        home.carrier = ImageCarrier(home.directory, home.kernel)
        assert home.carrier.claim(has_past=False) is None
    assert home.carrier.indexes() == []
    home.boot()
    came = []
    for step in arrive.arrive(home.carrier, home.kernel, arrive.Past()):
        if isinstance(step, arrive.BoxCame):
            came.append(content_of(step.entries["x"].fd.fileno()))
            close_all(one.fd for one in step.entries.values())
    assert came == [b"2", b"1", b"0"], "the newest has the name"
    assert home.files() == []


def test_a_folder_is_used_by_one_process(home: Home) -> None:
    home.box("a", x=b"one")
    home.publish()
    other = ImageCarrier(home.directory, FakeKernel(SECOND))
    assert other.indexes() == [], "it is not a past one's: its process lives"
    carriage = other.carriage()
    assert carriage.carrier is None
    assert "another fdbox" in carriage.obstacle
    with memory(b"x") as fd, pytest.raises(CannotCarry, match="another fdbox"):
        other.ship("fdbox-x").add([Parcel(fd.fileno(), 1)])
    home.carrier.close()
    assert other.carriage().carrier == "image"
    assert len(other.indexes()) == 1
    other.close()


def test_what_does_not_fit_into_memory_is_kept(home: Home) -> None:
    home.box("a", x=b"x" * MIB, y=b"y")
    home.publish()
    home.boot()
    home.kernel.free = MIB - 1
    came, lost = home.arrive()
    assert came == {"a/y": b"y"}
    assert ".kept" in lost[0]
    (kept,) = home.directory.rglob("*.kept")
    with memory(kept.read_bytes()) as fd:
        sizes = {stored.size for stored in imagefile.read(fd.fileno()).values()}
    assert MIB in sizes


def test_what_is_no_file_is_refused(home: Home) -> None:
    with OwnedFd(os.eventfd(0)) as fd, pytest.raises(ParcelRefused):
        home.carrier.ship("fdbox-x").add([Parcel(fd.fileno(), 3)])
    assert home.files() == []


@pytest.fixture
def small_disk(home: Home, tmp_path: Path) -> Iterator[None]:
    """Mount a file system of 64 MiB where the images go."""
    home.directory.mkdir()
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, home.directory], check=True)
    try:
        yield
    finally:
        home.end()
        subprocess.run(["umount", home.directory], check=True)


@pytest.mark.root
@pytest.mark.usefixtures("small_disk")
def test_what_does_not_fit_is_refused_before_it_is_written(home: Home) -> None:
    with memory(random.Random(1).randbytes(MIB) * 60) as fd:
        with pytest.raises(NoRoom, match="does not fit"):
            home.carrier.ship("fdbox-x").add([Parcel(fd.fileno(), 1)])
        assert home.files() == []


def test_a_folder_in_memory_carries_nothing() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        carrier = ImageCarrier(Path(folder), FakeKernel())
        carrier.claim(has_past=False)  # as a daemon does when it starts, whatever the folder is
        carriage = carrier.carriage()
        assert carriage.carrier is None
        assert "memory" in carriage.obstacle
        with pytest.raises(CannotCarry, match="in memory"):
            carrier.ship("fdbox-x").add([])
        carrier.close()


def test_a_folder_that_cannot_be_written_carries_nothing() -> None:
    carriage = ImageCarrier(Path("/etc/passwd/fdbox"), FakeKernel()).carriage()
    assert carriage.carrier is None
    assert "/etc/passwd/fdbox" in carriage.obstacle


def test_an_image_of_a_stranger_is_an_error(tmp_path: Path) -> None:
    for raw in (b"", b"x" * 5000, image.__doc__.encode() if image.__doc__ else b""):
        with memory(raw) as fd, pytest.raises(FdboxError):
            imagefile.read(fd.fileno())


def test_a_table_is_checked(tmp_path: Path) -> None:
    with memory(b"x") as fd, written(tmp_path, Parcel(fd.fileno(), 1)) as stored:
        whole = content_of(stored.fileno())
    start = int.from_bytes(whole[16:24], "little")
    root = manifest.unpack(whole[start:])
    for name, value in (("compatible", b"fdbox,image-v9\0"), ("chunk-size", b"\0\0\0\1")):
        other = manifest.unpack(whole[start:])
        other.properties[name] = value
        check_refused(whole[:start] + manifest.pack(other))
    for name in root.children[0].properties:
        for value in (b"", b"\xff" * 8, b"\xff" * 16):
            other = manifest.unpack(whole[start:])
            if name == "token" and len(value) == 8:
                continue  # any token can be
            if name == "checksums" and len(value) == 16:
                continue  # of one chunk
            other.children[0].properties[name] = value
            check_refused(whole[:start] + manifest.pack(other))


def check_refused(raw: bytes) -> None:
    head = raw[:24] + (len(raw) - int.from_bytes(raw[16:24], "little")).to_bytes(8, "little")
    with memory(head + raw[32:]) as fd, pytest.raises(ManifestInvalid):
        imagefile.read(fd.fileno())
