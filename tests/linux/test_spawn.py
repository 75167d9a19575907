from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fdbox.linux import memfd, spawn


def said(pid: int, reading: int) -> tuple[int, str]:
    """Return how a child ended, and what it has written."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), os.read(reading, 4096).decode()


def test_a_program_begins_with_its_descriptors() -> None:
    """Whatever numbers they had: also those that are in each other's way."""
    reading, writing = os.pipe()
    with memfd.create("a") as first, memfd.create("b") as second:
        os.write(first.fileno(), b"one")
        os.write(second.fileno(), b"two")
        code = "cat <&4; cat <&3; echo :$LISTEN_PID=$$:$(ulimit -Sn) >&5; test ! -e /dev/fd/6"
        given = [second.fileno(), first.fileno(), writing]
        command = ["sh", "-c", f"exec >&5; exec 6>&-; {code}"]
        for fd in (first, second):
            os.lseek(fd.fileno(), 0, os.SEEK_SET)
        environment = {**os.environ, "LISTEN_FDS": "3"}
        limit = (100, spawn.raise_file_limit()[1])
        pid = spawn.start(command, environment, given, supervised=True, file_limit=limit)
    assert os.getpgid(pid) == pid
    assert said(pid, reading) == (0, f"onetwo:{pid}={pid}:100\n")
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("program", "error"),
    [("/nowhere", FileNotFoundError), ("/etc/passwd", PermissionError), ("/", PermissionError)],
)
def test_a_program_that_cannot_be_run(program: str, error: type[OSError]) -> None:
    with pytest.raises(error) as raised:
        spawn.start([program], {}, [0, 1])
    assert raised.value.filename == program
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, 0)


def test_arguments_that_are_too_long() -> None:
    with pytest.raises(OSError, match="too long"):
        spawn.start(["/bin/true", "x" * 200_000], {}, [])


def test_who_descends_from_whom() -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 100 & echo $!; wait"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    assert spawn.parent_of(grandchild) == child.pid
    assert spawn.descends_from(grandchild, os.getpid())
    assert spawn.descends_from(os.getpid(), os.getpid())
    assert not spawn.descends_from(os.getpid(), child.pid)
    assert not spawn.descends_from(1, child.pid)
    assert not spawn.descends_from(0, child.pid)
    os.kill(grandchild, 9)
    with child:
        child.wait(20)
    assert not spawn.descends_from(child.pid, os.getpid())
    assert spawn.parent_of(child.pid) == 0


IN_A_PROCESS = """
import os, signal, time
from fdbox.linux import signalfd, spawn
from fdbox.linux.fd import is_readable
spawn.adopt_orphans()
fd = signalfd.block([signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD])
assert not os.get_inheritable(fd.fileno())
assert signalfd.read(fd.fileno()) == [] and not is_readable(fd.fileno())
for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
    os.kill(os.getpid(), number)
assert is_readable(fd.fileno())
assert sorted(signalfd.read(fd.fileno())) == [signal.SIGHUP, signal.SIGTERM]
assert signalfd.read(fd.fileno()) == []
child = os.fork()
if child == 0:
    if os.fork() == 0:
        while os.getppid() == child:
            time.sleep(0.001)
    os._exit(5)
ended = {os.waitpid(-1, 0)[1] for _ in range(2)}
assert ended == {5 << 8}, ended
assert signalfd.read(fd.fileno()) == [signal.SIGCHLD]
fd.close()
print("good")
"""


def test_signals_are_read_and_orphans_adopted() -> None:
    """In a process of its own, for it changes the whole process."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS], capture_output=True, text=True, check=False
    )
    assert done.stdout == "good\n", done.stderr
