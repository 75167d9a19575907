"""The whole daemon in this process, with real clients on a real socket; only the carrier and the kernel are fakes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.linux import kcmp, memfd
from fdbox.linux.fd import OwnedFd, close_all
from fdbox.model import BoxKey
from tests.fakes.carrier import FakeCarrier, FakeKernel
from tests.service.daemon import Daemon

if TYPE_CHECKING:
    from pathlib import Path


def test_a_box_gives_back_what_was_put(client: fdbox.Client, memory: OwnedFd) -> None:
    box = client.box("cache")
    entry = box.put("m", memory)
    assert (entry.kind, entry.size, entry.carrier) == ("memfd", 4096, "kernel")
    with box.get("m") as back:
        assert kcmp.same_file(back.fileno(), memory.fileno())
    os.ftruncate(memory.fileno(), 8192)
    assert box.list()[0].size == 8192, "the size is what it is now"
    with pytest.raises(fdbox.EntryExists):
        box.put("m", memory)
    with memfd.create("other") as other:
        box.put("m", other, replace=True)
        with box.get("m") as back:
            assert kcmp.same_file(back.fileno(), other.fileno())
    box.remove("m")
    assert box.list() == []
    box.delete()
    with pytest.raises(fdbox.BoxNotFound):
        box.list()


def test_253_descriptors_go_in_one_call(client: fdbox.Client, memory: OwnedFd) -> None:
    box = client.box("many")
    box.put_many({f"e{number}": memory for number in range(253)})
    found = box.get_many([f"e{number}" for number in range(253)])
    assert len(found) == 253
    close_all(found.values())
    with pytest.raises(fdbox.UsageError):
        box.put_many({f"f{number}": memory for number in range(254)})
    with pytest.raises(fdbox.QuotaExceeded) as caught:
        box.put_many({f"f{number}": memory for number in range(100)})
    assert caught.value.context["limit"] == 300


def test_box_quota(client: fdbox.Client) -> None:
    for name in "abc":
        client.box(name)
    with pytest.raises(fdbox.QuotaExceeded):
        client.box("d")


@pytest.mark.parametrize("name", ["a/b", "a\0b", "x" * 256, ""])
def test_bad_names(client: fdbox.Client, memory: OwnedFd, name: str) -> None:
    with pytest.raises(fdbox.InvalidName):
        client.box(name)
    with pytest.raises(fdbox.InvalidName):
        client.box("good").put(name, memory)


def test_a_closed_descriptor_is_refused(client: fdbox.Client) -> None:
    box = client.box("cache")
    with pytest.raises(fdbox.InvalidDescriptor):
        box.put("x", 987_654)


def test_what_nothing_carries_is_a_warning_at_put_and_an_error_at_seal(
    client: fdbox.Client, tmp_path: Path
) -> None:
    box = client.box("cache")
    with fdbox.OwnedFd(os.pidfd_open(os.getpid())) as process:
        entry = box.put("process", process)
    assert (entry.kind, entry.carrier) == ("pidfd", None)
    assert entry.obstacle
    assert entry.remedy
    with (tmp_path / "file").open("wb") as file:
        assert box.put("file", file).kind == "regular-file"
    assert [one.kind for one in box.list()] == ["pidfd", "regular-file"]
    with pytest.raises(fdbox.CannotCarry, match="'process'") as caught:
        box.seal()
    assert caught.value.context["kind"] == "pidfd"
    assert client.boxes()[0].state == "open"


def test_a_sealed_box_refuses_changes_and_says_so(client: fdbox.Client, memory: OwnedFd) -> None:
    box = client.box("cache")
    box.put("m", memory)
    assert box.seal().state == "sealed"
    for change in (
        lambda: box.put("n", memory),
        lambda: box.remove("m"),
        box.delete,
        box.seal,
    ):
        with pytest.raises(fdbox.BoxSealed, match="is sealed"):
            change()
    box.get("m").close()
    assert box.unseal().state == "open"
    with pytest.raises(fdbox.BoxNotSealed):
        box.unseal()
    box.remove("m")


def test_status_tells_what_the_machine_lacks(daemon: Daemon, client: fdbox.Client) -> None:
    assert client.status().carrier == "kernel"
    daemon.carrier.obstacle = "no device"
    status = client.status()
    assert (status.carrier, status.obstacle, status.remedy) == (
        None,
        "no device",
        "use another",
    )


@pytest.mark.root
def test_others_cannot_even_learn_that_a_box_exists(
    daemon: Daemon, client: fdbox.Client, memory: OwnedFd
) -> None:
    daemon.socket.parent.chmod(0o755)
    client.box("mine").put("m", memory)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(4711)
            with fdbox.connect(daemon.socket) as other:
                said = []
                for name in ("mine", "none"):
                    try:
                        other.existing_box(name, 0).get("m")
                    except fdbox.BoxNotFound as error:
                        said.append(str(error).replace(name, "?"))
                assert len(said) == 2
                assert said[0] == said[1]
                assert other.boxes() == []
                other.box("mine")
                try:
                    list(other.update(0, None, ""))
                except fdbox.PermissionDenied:
                    status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert [(box.name, box.owner) for box in client.boxes()] == [("mine", 0), ("mine", 4711)]
    assert client.existing_box("mine", 4711).list() == []


def test_boxes_arrive_and_losses_are_told(socket_path: Path) -> None:
    carrier, kernel = FakeCarrier(), FakeKernel()
    first = Daemon(socket_path, carrier, kernel)
    with fdbox.connect(socket_path) as client:
        box = client.box("cache")
        with box.memory("good", size=4096) as memory:
            memory[:4] = b"kept"
        with memfd.create("bad") as bad:
            box.put("bad", bad)
        box.seal()
    vault = first.service.vault
    sealed = vault._sealed.pop(BoxKey(os.getuid(), "cache"))
    vault._index = None
    carrier.cross(kernel)
    sealed.manifest.close()
    sealed.freight.close()
    first.stop()
    carrier.incoming[sealed.shipment.name].files.pop(2).close()
    second = Daemon(socket_path, carrier, kernel)
    with fdbox.connect(socket_path) as client:
        status = client.status()
        assert status.arrived == 1
        assert [(loss.box, loss.entry) for loss in status.lost] == [("cache", "bad")]
        with client.box("cache").memory("good") as memory:
            assert memory.recovered
            assert memory[:4] == b"kept"
        assert client.box("cache").list()[0].label == "good"
        client.box("cache").seal()
    second.stop()
    carrier.switch_off()
