from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry, FdboxError, FdtError, KernelError, LateWrite
from fdbox.kinds import registry
from fdbox.kinds.freight import Arrivals, Made
from fdbox.kinds.look import look
from fdbox.linux import sock, sockdiag
from fdbox.linux.fd import OwnedFd
from tests.fakes.carrier import FakeKernel
from tests.kinds.conformance import World
from tests.kinds.samples import Entries, Sample
from tests.kinds.test_unix_pair import DGRAM, SEQPACKET, STREAM, drain, events, options, unusual

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fdbox.fdt.tree import Node

KIND = registry.CARRIED["unix-socket"]
SOCKET = {"socket": "unix-socket"}
Change = "Callable[[socket.socket, Path], Any]"


def one(kind: int, *changes: Callable[[socket.socket, Path], Any]) -> Any:  # noqa: ANN401 - a function
    """Return what makes a socket and changes it."""

    def make(folder: Path) -> Entries:
        made = socket.socket(socket.AF_UNIX, kind)
        for change in changes:
            change(made, folder)
        return {"socket": OwnedFd(made.detach())}

    return make


def abstract(folder: Path) -> bytes:
    return b"\0fdbox-test " + os.fsencode(folder)


def bound(made: socket.socket, folder: Path) -> None:
    made.bind(str(folder / "socket"))


def named(made: socket.socket, folder: Path) -> None:
    made.bind(abstract(folder))


def in_memory(folder: Path) -> Path:
    """Return a path of a file system that a reboot empties."""
    return Path("/dev/shm") / f"fdbox-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"


def bound_in_memory(made: socket.socket, folder: Path) -> None:
    made.bind(str(in_memory(folder)))


def reboot(folder: Path) -> None:
    in_memory(folder).unlink(missing_ok=True)


def listening(backlog: int) -> Callable[[socket.socket, Path], Any]:
    return lambda made, folder: made.listen(backlog)


def owned(made: socket.socket, folder: Path) -> None:
    (folder / "socket").chmod(0o660)
    os.chown(folder / "socket", 1234, 2345)
    os.fchown(made.fileno(), 3456, 4567)


def sent(*messages: bytes) -> Callable[[socket.socket, Path], Any]:
    def send(made: socket.socket, folder: Path) -> None:
        with socket.socket(socket.AF_UNIX, DGRAM) as sender:
            for message in messages:
                sender.sendto(message, made.getsockname())

    return send


def removed(made: socket.socket, folder: Path) -> None:
    (folder / "socket").unlink()


def connected(made: socket.socket, folder: Path) -> None:
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, made.type) as client:
            client.connect(made.getsockname())


def strange(made: socket.socket, folder: Path) -> None:
    unusual(made, made)


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    fd = fds["socket"]
    with sock.borrow(fd) as lent:
        status, told = os.fstat(fd), sockdiag.unix_socket(os.fstat(fd).st_ino)
        seen: list[Any] = [
            [stat.filemode(status.st_mode), status.st_uid, status.st_gid],
            [fcntl.fcntl(fd, fcntl.F_GETFL), lent.type, options(lent), events(lent)],
            [told.is_listening, told.shutdown, told.sending if told.is_listening else 0],
        ]
        name = lent.getsockname()
        if isinstance(name, str) and name.startswith("/"):
            file = Path(name).stat()
            seen.append([stat.filemode(file.st_mode), file.st_uid, file.st_gid])
        seen.append(hidden_name(name, folder))
        if lent.type == DGRAM and name:
            seen.append(drain(lent))
            sent(b"new")(lent, folder)
            seen.append(drain(lent))
        elif told.is_listening and not told.shutdown:
            seen.append(accept(lent))
        return seen


def hidden_name(name: str | bytes, folder: Path) -> str:
    """Return a name without what differs each time."""
    where = {str(folder): "FOLDER", str(in_memory(folder)): "MEMORY"}
    text = os.fsdecode(name)
    for path, short in where.items():
        text = text.replace(path, short)
    return text


def accept(lent: socket.socket) -> list[str]:
    """Connect, and say something."""
    with socket.socket(socket.AF_UNIX, lent.type) as client:
        client.settimeout(5)
        client.connect(lent.getsockname())
        accepted, _ = lent.accept()
        with accepted:
            client.sendall(b"hello")
            return [str(accepted.recv(9))]


def observe_removed(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    fd = fds["socket"]
    with sock.borrow(fd) as lent:
        told = sockdiag.unix_socket(os.fstat(fd).st_ino)
        exists = Path(lent.getsockname()).exists()
        return [told.is_listening, exists, drain(lent) if lent.type == DGRAM else []]


def observe_accepting(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    """Leave out those that waited."""
    with sock.borrow(fds["socket"]) as lent:
        lent.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                lent.accept()[0].close()
        lent.setblocking(True)
    return observe(fds, folder)


def disturb(fds: Mapping[str, int]) -> None:
    with sock.borrow(fds["socket"]) as lent:
        lent.shutdown(socket.SHUT_RD)


SAMPLES = [
    *(
        Sample(f"unix socket {name} {what}", SOCKET, one(kind, *changes), observe, disturb)
        for name, kind in (("stream", STREAM), ("dgram", DGRAM), ("seqpacket", SEQPACKET))
        for what, changes in (
            ("fresh", ()),
            ("with options", (strange,)),
            ("bound", (bound,)),
            ("with an abstract name", (named,)),
        )
    ),
    *(
        Sample(
            f"unix socket {name} listening {what}", SOCKET, one(kind, *changes), observe, disturb
        )
        for name, kind in (("stream", STREAM), ("seqpacket", SEQPACKET))
        for what, changes in (
            ("at a path", (bound, listening(7))),
            ("at an abstract name", (named, listening(0), strange)),
        )
    ),
    Sample(
        "unix socket of somebody",
        SOCKET,
        one(STREAM, bound, owned, listening(9)),
        observe,
        disturb,
        root=True,
    ),
    Sample(
        "unix socket in memory",
        SOCKET,
        one(STREAM, bound_in_memory, listening(5)),
        observe,
        disturb,
        reboot,
        vm_only=True,  # of hostile components, sockets would be left in /dev/shm
    ),
    Sample(
        "unix socket listening no more",
        SOCKET,
        one(STREAM, bound, listening(5), lambda made, folder: made.shutdown(socket.SHUT_RDWR)),
        observe,
    ),
    Sample(
        "unix socket with connections",
        SOCKET,
        one(STREAM, bound, listening(5), connected),
        observe_accepting,
        disturb,
        lost=("accepted (2)",),
    ),
    *(
        Sample(
            f"unix socket dgram with messages {what}",
            SOCKET,
            one(DGRAM, bind, sent(b"", b"a", b"x" * 90_000, b"", b"b")),
            observe,
            disturb,
            lost=("who sent what is queued (5)",),
        )
        for what, bind in (("at a path", bound), ("at an abstract name", named))
    ),
    Sample(
        "unix socket whose file was removed",
        SOCKET,
        one(STREAM, bound, listening(5), removed),
        observe_removed,
        disturb,
        lost=("of which the file was removed",),
    ),
    Sample(
        "unix socket dgram whose file was removed",
        SOCKET,
        one(DGRAM, bound, sent(b"a"), removed),
        observe_removed,
        disturb,
        lost=("of which the file was removed", "who sent"),
    ),
]


def kept(world: World, entries: Entries) -> Entries:
    world.made.append(entries)
    return entries


def carriage(world: World, entries: Entries) -> str:
    seen = look(entries["socket"].fileno())
    return str(registry.recognise(seen).carriage(seen, world.carrier).obstacle)


# --- what is refused at seal ------------------------------------------------------------------------------------------


def test_a_relative_path_is_refused_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)
    entries = kept(world, one(STREAM, lambda made, folder: made.bind("here"))(world.folder))
    assert "relative path 'here'" in carriage(world, entries)
    with pytest.raises(CannotCarry, match="relative path 'here'"):
        world.seal(entries)


def test_a_path_that_leads_to_another_file_is_refused(world: World) -> None:
    entries = kept(world, one(STREAM, bound)(world.folder))
    (world.folder / "socket").rename(world.folder / "elsewhere")
    (world.folder / "socket").touch()
    with pytest.raises(CannotCarry, match="does not lead to it from here"):
        world.seal(entries)


def test_a_socket_that_is_connected_late_is_noticed(world: World) -> None:
    listener = kept(world, one(STREAM, named, listening(5))(world.folder))
    entries = kept(world, one(STREAM)(world.folder))
    sealed = world.seal(entries)
    with (
        sock.borrow(entries["socket"].fileno()) as lent,
        sock.borrow(listener["socket"].fileno()) as other,
    ):
        lent.connect(other.getsockname())
    with pytest.raises(LateWrite):
        sealed.verify()
    sealed.thaw()


def test_a_file_that_is_removed_late_is_noticed(world: World) -> None:
    entries = kept(world, one(STREAM, bound, listening(5))(world.folder))
    sealed = world.seal(entries)
    (world.folder / "socket").unlink()
    with pytest.raises(LateWrite):
        sealed.verify()
    sealed.thaw()


def test_connections_that_come_late_are_no_change(world: World) -> None:
    entries = kept(world, one(STREAM, bound, listening(5))(world.folder))
    sealed = world.seal(entries)
    with sock.borrow(entries["socket"].fileno()) as lent:
        connected(lent, world.folder)
    sealed.verify()
    sealed.thaw()


def test_it_is_bound_anew_where_a_reboot_has_removed_its_file(world: World) -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "unix socket in memory")
    expected = world.expected(sample)
    world.jump(sample, world.make(sample))
    entries, losses = world.arrive()
    assert losses == []
    assert world.observe(sample, entries) == expected


# --- what is refused at arrival ---------------------------------------------------------------------------------------


@pytest.fixture
def left(world: World) -> Node:
    """Return the component of a listener that is gone; its file is still there."""
    entries = kept(world, one(STREAM, bound, listening(5))(world.folder))
    sealed = world.seal(entries)
    component = sealed.parts[0].component
    sealed.thaw()
    world.let_go(entries)
    return component


def load(component: Node, owner: int = 0) -> Made | FdboxError:
    (loaded,) = KIND.load(component, Arrivals(FakeKernel(), OwnedFd, {}, owner))
    return loaded


def refusal(component: Node, owner: int = 0) -> str:
    loaded = load(component, owner)
    if isinstance(loaded, Made):
        loaded.fd.close()
    assert isinstance(loaded, KernelError)
    return str(loaded)


def test_the_file_that_it_left_is_replaced(world: World, left: Node) -> None:
    loaded = load(left)
    assert isinstance(loaded, Made)
    with loaded.fd as fd, sock.borrow(fd.fileno()) as lent:
        assert accept(lent) == ["b'hello'"]


@pytest.mark.root
def test_a_process_that_comes_after_one_that_died_while_it_arrived_makes_it_again(
    world: World, left: Node
) -> None:
    for _ in range(3):
        loaded = load(left)
        assert isinstance(loaded, Made)
        loaded.fd.close()


@pytest.mark.parametrize("what", ["file", "socket", "link", "folder"])
def test_what_somebody_else_has_put_in_its_place_is_left_alone(
    world: World, left: Node, what: str
) -> None:
    path = world.folder / "socket"
    path.unlink()
    other = socket.socket(socket.AF_UNIX)
    with other:
        if what == "file":
            path.write_text("precious")
        elif what == "socket":
            other.bind(str(path))
        elif what == "link":
            (world.folder / "precious").touch()
            path.symlink_to("precious")
        else:
            path.mkdir()
        before = path.lstat().st_ino
        assert "somebody else has its name" in refusal(left)
        assert path.lstat().st_ino == before


def test_a_directory_that_is_not_there_is_named(world: World, left: Node) -> None:
    world.folder.rename(world.folder.with_name("renamed"))
    said = refusal(left)
    world.folder.with_name("renamed").rename(world.folder)
    assert "the directory of its name" in said
    assert str(world.folder) in said


def test_a_symbolic_link_on_the_way_is_not_followed_into_another_directory(
    world: World, left: Node, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    world.folder.rename(world.folder.with_name("renamed"))
    world.folder.symlink_to(elsewhere)
    said = refusal(left)
    world.folder.unlink()
    world.folder.with_name("renamed").rename(world.folder)
    assert "the directory of its name" in said
    assert list(elsewhere.iterdir()) == []


def test_a_symbolic_link_that_was_there_before_is_followed(world: World) -> None:
    (world.folder / "real").mkdir()
    (world.folder / "link").symlink_to("real")
    path = world.folder / "link" / "socket"
    entries = kept(world, one(STREAM, lambda made, folder: made.bind(str(path)))(world.folder))
    sealed = world.seal(entries)
    component = sealed.parts[0].component
    sealed.thaw()
    world.let_go(entries)
    loaded = load(component)
    assert isinstance(loaded, Made)
    with loaded.fd as fd, sock.borrow(fd.fileno()) as lent:
        assert lent.getsockname() == str(path)


@pytest.mark.root
def test_nobody_gets_a_file_in_anothers_directory(world: World, left: Node) -> None:
    """The owner of a box has no more rights than he had before."""
    assert "does not own the file" in refusal(left, owner=1234)
    left.child("file@0").child("name@0").set_u32("uid", 1234)
    assert "Permission denied" in refusal(left, owner=1234)


@pytest.mark.root
def test_a_user_gets_his_file_in_his_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = Path("/dev/shm") / f"fdbox-{os.getpid()}"
    folder.mkdir()
    os.chown(folder, 1234, 1234)
    world = World(folder)
    try:
        made = one(STREAM, bound, lambda made, folder: os.chown(folder / "socket", 1234, 1234))
        entries = kept(world, made(folder))
        sealed = world.seal(entries)
        component = sealed.parts[0].component
        sealed.thaw()
        world.let_go(entries)
        loaded = load(component, owner=1234)
        assert isinstance(loaded, Made), loaded
        loaded.fd.close()
        assert (folder / "socket").stat().st_uid == 1234
    finally:
        world.close()
        (folder / "socket").unlink(missing_ok=True)
        folder.rmdir()


def test_an_abstract_name_that_is_taken_is_named(world: World) -> None:
    entries = kept(world, one(STREAM, named)(world.folder))
    sealed = world.seal(entries)
    assert "somebody else has its name '@fdbox-test" in refusal(sealed.parts[0].component)
    sealed.thaw()


def test_what_fails_after_it_was_bound_leaves_no_file(world: World, left: Node) -> None:
    left.child("file@0").set_u32("backlog", 0xFFFFFFFF)
    loaded = load(left)
    assert isinstance(loaded, KernelError)
    assert not (world.folder / "socket").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("path", "relative"), ("path", "/"), ("path", "/tmp/.."), ("path", "/tmp/")]
)
def test_names_that_no_socket_has_are_refused(left: Node, name: str, value: str) -> None:
    left.child("file@0").child("name@0").set_path(name, value)
    assert isinstance(load(left), FdtError)


def test_a_backlog_that_is_no_longer_allowed_is_told(world: World, left: Node) -> None:
    left.child("file@0").set_u32("backlog", 1 << 30)
    loaded = load(left)
    assert isinstance(loaded, Made)
    loaded.fd.close()
    assert "its backlog" in loaded.lost[0]
