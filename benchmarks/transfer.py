"""What does it cost the server to take a descriptor and to give it back? CPU of the server alone, a put and a get.

The floor is a C program (pingpong.c) that does the same system calls and nothing else; the peer is s6-fdholderd, driven
by its own C library.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import build, cpu, ratio, rounds
from tests.vm.debian import ensure_programs

from fdbox.linux import memfd, scm
from fdbox.linux.fd import close_all
from fdbox.varlink import interface, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAIRS = {1: 2000, 253: 60}
S6 = {
    "s6-fdholderd": "s6",
    "/usr/include/x86_64-linux-gnu/s6/fdholder.h": "libs6-dev",
    "/usr/include/x86_64-linux-gnu/skalibs/tai.h": "skalibs-dev",
}
TARGETS = {("pingpong", 1): 2.0, ("s6-fdholderd", 1): 1.35, ("pingpong", 253): 1.5}


@contextmanager
def server(command: list[str], path: Path) -> Iterator[int]:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        while not path.exists():
            assert process.poll() is None, command
            time.sleep(0.01)
        try:
            yield process.pid
        finally:
            process.terminate()


def receive(sock: socket.socket) -> int:
    """Return how many descriptors came with one message; they are closed again."""
    text, count = b"", 0
    while not text.endswith(b"\0"):
        chunk, fds = scm.receive_with_fds(sock, 1 << 20)
        close_all(fds)
        text += chunk
        count += len(fds)
    assert b"error" not in text, text
    return count


def pairs(path: Path, pid: int, files: tuple[list[int], list[int]]) -> Callable[[], float]:
    """Return what puts some `files`, gets them back, then others instead of them; it returns the server's ns a pair.

    The bytes are fdbox's, also for the floor, which does not read them.
    """
    count = len(files[0])
    names = [f"entry{number}" for number in range(count)]
    attached = [interface.Attachment(name=n, file_descriptor=i) for i, n in enumerate(names)]
    put = wire.encode_call("io.fdbox.Put", interface.Put(box="b", entries=attached, replace=True))
    get = wire.encode_call("io.fdbox.Get", interface.NamesRequest(box="b", names=names))

    def run() -> float:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            before = cpu(pid)
            for number in range(PAIRS[count]):
                scm.send_with_fds(sock, put, files[number % 2])
                assert receive(sock) == 0
                scm.send_with_fds(sock, get, [])
                assert receive(sock) == count
            time.sleep(0.05)  # what it does after its answer is its work, too
            return (cpu(pid) - before) / PAIRS[count]

    return run


def create_box(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(wire.encode_call("io.fdbox.CreateBox", interface.CreateBox(box="b")))
        receive(sock)


def s6_rules(folder: Path) -> Path:
    allowed = folder / "uid" / str(os.getuid())
    (allowed / "env").mkdir(parents=True)
    (allowed / "allow").touch()
    for what in ("STORE", "RETRIEVE"):
        (allowed / "env" / f"S6_FDHOLDER_{what}_REGEX").write_text(".*")
    return folder


def s6_pairs(path: Path, pid: int, program: Path, stack: ExitStack, fd: int) -> Callable[[], float]:
    driver = stack.enter_context(
        subprocess.Popen(
            [program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[fd]
        )
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    asked, done = driver.stdin, driver.stdout
    stack.callback(asked.close)

    def run() -> float:
        before = cpu(pid)
        asked.write(b"%d\n" % PAIRS[1])
        asked.flush()
        assert done.readline() == b"done\n"
        return (cpu(pid) - before) / PAIRS[1]

    return run


def main() -> None:
    ensure_programs(S6)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fdbox-bench")))
        s6 = shutil.which("s6-fdholder-daemon")
        assert s6 is not None
        commands = {
            "fdbox": [sys.executable, "-m", "fdbox", "serve", "--socket"],
            "pingpong": [str(build("pingpong.c", folder))],
            "s6-fdholderd": [s6, "-1", "-i", str(s6_rules(folder / "rules"))],
        }
        at = {name: folder / name.replace("-", "") for name in commands}
        at["pingpong"] = folder / "floor"
        pids = {
            name: stack.enter_context(server([*command, str(at[name])], at[name]))
            for name, command in commands.items()
        }
        create_box(at["fdbox"])
        made = [stack.enter_context(memfd.create("measured", 4096)) for _ in range(2 * max(PAIRS))]
        fds = [one.fileno() for one in made]
        s6_client = build("s6_client.c", folder, "-ls6", "-lskarnet")
        for count in PAIRS:
            runs = {
                name: pairs(at[name], pids[name], (fds[:count], fds[-count:]))
                for name in ("fdbox", "pingpong")
            }
            if count == 1:
                runs["s6-fdholderd"] = s6_pairs(
                    at["s6-fdholderd"], pids["s6-fdholderd"], s6_client, stack, fds[0]
                )
            report(count, rounds(runs))


def report(count: int, found: dict[str, list[float]]) -> None:
    for name, costs in found.items():
        print(
            f"{count:4} a call  {name:13} {statistics.median(costs) / 1000:9.1f} µs of server CPU a pair"
        )
    for name, theirs in found.items():
        if name != "fdbox":
            target = TARGETS[name, count]
            print(
                f"{count:4} a call  fdbox / {name}: {ratio(found['fdbox'], theirs)}, target {target}"
            )


main()
