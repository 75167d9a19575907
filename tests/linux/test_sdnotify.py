from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fdbox.linux import memfd, scm, sdnotify
from fdbox.linux.fd import close_all


def test_a_datagram_arrives_with_its_descriptors_and_its_sender() -> None:
    with sdnotify.listen() as server, sdnotify.connect(sdnotify.address(server)) as client:
        with pytest.raises(BlockingIOError):
            sdnotify.receive(server)
        with memfd.create("m") as fd:
            sdnotify.send(client, {"FDSTORE": "1", "FDNAME": "näme=x"}, [fd.fileno()] * 2)
        got = sdnotify.receive(server)
        assert got.fields == {"FDSTORE": "1", "FDNAME": "näme=x"}
        assert got.sender == os.getpid()
        assert [os.get_inheritable(fd.fileno()) for fd in got.descriptors] == [False, False]
        close_all(got.descriptors)


@pytest.mark.parametrize("text", [b"x" * 5000, b"\xff\xfe=1", b"no assignment", b"\n"])
def test_what_makes_no_sense_says_nothing(text: bytes) -> None:
    with sdnotify.listen() as server, sdnotify.connect(sdnotify.address(server)) as client:
        scm.send_with_fds(client, text, [0])
        got = sdnotify.receive(server)
        close_all(got.descriptors)
        assert got.fields == {}


def test_nobody_listens() -> None:
    with pytest.raises(OSError, match="refused"):
        sdnotify.connect("@fdbox-test-nobody")


def test_what_was_inherited_is_taken_once() -> None:
    program = """
import os, sys
from fdbox.linux import sdnotify
for number, given in enumerate(sys.argv[1:], sdnotify.FIRST):
    os.dup2(int(given), number)
environment = {**sdnotify.inheritance(["a", "b"]), "LISTEN_PID": str(os.getpid())}
found = sdnotify.take_inherited(environment)
print([name for name, _ in found], [os.get_inheritable(fd.fileno()) for _, fd in found], environment)
assert sdnotify.take_inherited(environment) == []
assert sdnotify.take_inherited({"LISTEN_FDS": "2", "LISTEN_PID": "1"}) == []
for _, fd in found:
    fd.close()
"""
    with memfd.create("a") as one, memfd.create("b") as two:
        numbers = [one.fileno(), two.fileno()]
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, numbers)],
            pass_fds=numbers,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['a', 'b'] [False, False] {}\n"
