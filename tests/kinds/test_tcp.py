from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fdbox.errors import CannotCarry
from fdbox.linux.fd import OwnedFd
from tests.kinds.conformance import World, kinds_of
from tests.kinds.samples import Entries, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

TCP, SOCKET = socket.IPPROTO_TCP, socket.SOL_SOCKET
ANY = ("127.0.0.1", 0)


def owned(sock: socket.socket) -> OwnedFd:
    return OwnedFd(sock.detach())


def listener(
    address: tuple[str, int], backlog: int = 77, *options: tuple[int, int, int]
) -> Callable[[Path], Entries]:
    def make(folder: Path) -> Entries:
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        sock.setsockopt(SOCKET, socket.SO_REUSEADDR, 1)
        for option in options:
            sock.setsockopt(*option)
        sock.bind(address)
        sock.listen(backlog)
        (folder / "port").write_text(str(sock.getsockname()[1]))
        return {"socket": owned(sock)}

    return make


WANTED = (
    (SOCKET, socket.SO_KEEPALIVE, 1),
    (SOCKET, socket.SO_RCVBUF, 30000),
    (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
    (TCP, socket.TCP_NODELAY, 1),
    (TCP, socket.TCP_KEEPIDLE, 77),
    (TCP, socket.TCP_DEFER_ACCEPT, 3),
    (TCP, socket.TCP_USER_TIMEOUT, 12345),
)


def observe(fds: Mapping[str, int], folder: Path) -> Any:  # noqa: ANN401 - JSON
    """Return options and, of a listener, that it still has its port and takes connections."""
    with socket.socket(fileno=os.dup(fds["socket"])) as sock:
        options = [sock.getsockopt(level, number) for level, number, _ in WANTED]
        name = sock.getsockname()
        same_port = str(name[1]) == (folder / "port").read_text()
        found = [
            options,
            name[0],
            same_port,
            sock.getsockopt(SOCKET, socket.SO_ACCEPTCONN),
            sock.getblocking(),
        ]
        if sock.getsockopt(SOCKET, socket.SO_ACCEPTCONN):
            backlog = int.from_bytes(
                sock.getsockopt(TCP, socket.TCP_INFO, 32)[28:32], sys.byteorder
            )
            found += [backlog, talk(sock)]
        return found


def talk(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    with socket.create_connection((host.replace("0.0.0.0", "127.0.0.1"), port)) as client:
        client.sendall(b"hello")
        sock.setblocking(True)
        with sock.accept()[0] as server:
            return server.recv(9).decode()


def bound(folder: Path) -> Entries:
    sock = socket.socket()
    sock.setsockopt(SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(ANY)
    sock.setblocking(False)
    (folder / "port").write_text(str(sock.getsockname()[1]))
    return {"socket": owned(sock)}


def fresh(folder: Path) -> Entries:
    (folder / "port").write_text("0")
    return {"socket": owned(socket.socket(socket.AF_INET6))}


def disturb(fds: Mapping[str, int]) -> None:
    with socket.socket(fileno=os.dup(fds["socket"])) as sock:
        sock.setsockopt(SOCKET, socket.SO_PRIORITY, 5)


def sample(name: str, make: Callable[[Path], Entries]) -> Sample:
    return Sample(f"tcp {name}", {"socket": "tcp-socket"}, make, observe, disturb)


SAMPLES = [
    sample("listener", listener(ANY)),
    sample("listener with options", listener(ANY, 5, *WANTED)),
    sample("listener to any address", listener(("0.0.0.0", 0))),
    sample("listener v6", listener(("::1", 0), 7, (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1))),
    sample(
        "listener to both", listener(("::", 0), 7, (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0))
    ),
    sample("bound", bound),
    sample("fresh", fresh),
]


def test_who_waits_to_be_accepted_is_told(world: World) -> None:
    entries = world.make(SAMPLES[0])
    port = int((world.folder / "own" / "port").read_text())
    with (
        socket.create_connection(("127.0.0.1", port)),
        socket.create_connection(("127.0.0.1", port)),
    ):
        world.jump(SAMPLES[0], entries)
    arrived, (loss,) = world.arrive()
    assert "connections that wait to be accepted (2)" in loss.reason
    assert list(arrived) == ["socket"]


def test_a_port_that_somebody_has_is_named(world: World) -> None:
    world.jump(SAMPLES[0], world.make(SAMPLES[0]))
    port = int((world.folder / "own" / "port").read_text())
    with socket.create_server(("127.0.0.1", port)):
        arrived, (loss,) = world.arrive()
    assert arrived == {}
    assert f"cannot bind it to 127.0.0.1:{port}: Address already in use" in loss.reason


def test_a_group_of_listeners_shares_its_port(world: World) -> None:
    first = socket.socket()
    first.setsockopt(SOCKET, socket.SO_REUSEPORT, 1)
    first.bind(ANY)
    first.listen()
    second = socket.socket()
    second.setsockopt(SOCKET, socket.SO_REUSEPORT, 1)
    second.bind(first.getsockname())
    second.listen()
    entries = {"first": owned(first), "second": owned(second)}
    world.made.append(entries)
    world.jump(SAMPLES[0], entries)
    arrived, losses = world.arrive()
    assert losses == []
    names = {os.readlink(f"/proc/self/fd/{fd.fileno()}") for fd in arrived.values()}
    assert len(names) == 2


def test_a_connection_is_refused(world: World) -> None:
    with (
        socket.create_server(ANY) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        entries = {"connection": OwnedFd(os.dup(client.fileno()))}
        world.made.append(entries)
        assert kinds_of(client.fileno()) == ["tcp-connection"]
        with pytest.raises(CannotCarry, match=r"'connection' .*does not repair"):
            world.seal(entries)


@pytest.mark.root
def test_an_address_that_is_not_there_yet_is_bound_all_the_same(world: World) -> None:
    """Early in the boot no interface has its address: in a network namespace without any, too."""
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_IP, 15, 1)
    sock.bind(("192.0.2.7", 0))
    sock.setsockopt(socket.IPPROTO_IP, 15, 0)
    entries = {"socket": owned(sock)}
    world.made.append(entries)
    world.jump(SAMPLES[0], entries)
    arrived, losses = world.arrive()
    assert losses == []
    with socket.socket(fileno=os.dup(arrived["socket"].fileno())) as again:
        assert again.getsockname()[0] == "192.0.2.7"
        assert again.getsockopt(socket.IPPROTO_IP, 15) == 0


FOREIGN = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", 0))
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [sock.fileno()])
"""


@pytest.mark.root
def test_a_socket_of_another_network_is_refused(world: World) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
        command += [sys.executable, "-c", FOREIGN, str(theirs.fileno())]
        subprocess.run(command, check=True, pass_fds=[theirs.fileno()])
        _, fds, _, _ = socket.recv_fds(ours, 9, 1)
    entries = {"socket": OwnedFd(fds[0])}
    world.made.append(entries)
    with pytest.raises(CannotCarry, match="another network namespace"):
        world.seal(entries)
