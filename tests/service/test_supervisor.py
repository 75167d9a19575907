"""`fdbox run` without a box, as the program that it runs sees it; signals are blocked for a whole process, so never in ours."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from fdbox.linux import memfd, sdnotify
from tests.service.running import PRELUDE, Running, children, program, until

pytestmark = pytest.mark.slow


# --- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "status", "is_failure"),
    [
        ("sys.exit(0)", 0, False),
        ("sys.exit(3)", 3, True),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, False),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, True),
        ("notify('WATCHDOG=trigger'); signal.pause()", 134, True),
    ],
    ids=["exit-0", "exit-3", "sigterm", "sigkill", "watchdog"],
)
@pytest.mark.parametrize("policy", ["on-failure", "always", "no"])
def test_whether_it_is_started_again(policy: str, end: str, status: int, is_failure: bool) -> None:
    code = f"""
if held:
    say("again")
    signal.pause()
notify("FDSTORE=1", memory(""))
barrier()
{end}
"""
    with Running(program(code), "--restart", policy) as running:
        if policy == "always" or (policy == "on-failure" and is_failure):
            assert running.line() == "again"
            assert running.terminate() == 143
        else:
            assert running.end() == status


def test_the_pauses_double() -> None:
    code = 'notify("FDSTORE=1", memory("")); barrier(); sys.exit(5 if len(held) < 4 else 0)'
    with Running(program(code)) as running:
        assert running.end() == 0
        pauses = re.findall(r"ended with status 5: started again in (\S+) s", running.log)
    assert pauses == ["0.1", "0.2", "0.4", "0.8"]


def test_a_signal_ends_a_pause() -> None:
    with Running(["sh", "-c", "echo x; exit 3"]) as running:
        for _ in range(4):
            running.line()
        until(lambda: "started again in 0.8 s" in running.log)
        assert running.terminate() == 3


@pytest.mark.parametrize(
    ("command", "status"), [("/nowhere/it", 127), ("no-such-program", 127), ("/etc/passwd", 126)]
)
def test_what_cannot_be_started(command: str, status: int) -> None:
    with Running([command], "--restart", "always") as running:
        assert running.end() == status
        assert f"cannot run {command}" in running.log


def test_what_cannot_be_started_for_a_while_is_started_again(tmp_path: Path) -> None:
    """It is being upgraded, say. What it stored waits."""
    code = 'say("up", *names); notify("FDSTORE=1", memory("")); barrier(); input(); sys.exit(3)'
    script, away = tmp_path / "it", tmp_path / "away"
    script.write_text(f"#!{sys.executable} -IS\n{PRELUDE}{code}")
    script.chmod(0o755)
    with Running([str(script)]) as running:
        assert running.line() == "up"
        script.rename(away)
        running.tell("")
        until(lambda: "cannot be started" in running.log)
        away.rename(script)
        assert running.line() == "up stored"
        assert running.terminate() == 143


# --- signals and processes -------------------------------------------------------------------------------------------


def test_signals_are_passed_on() -> None:
    code = """
def heard(number, _):
    os.write(1, f"{signal.Signals(number).name}\\n".encode())  # print() may be at work
for one in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT):
    signal.signal(one, heard)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
say("up", signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL)
while True:
    signal.pause()
"""
    with Running(program(code), "--restart", "always") as running:
        assert running.line() == "up set() True"
        for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT"):
            running.process.send_signal(signal.Signals[name])
            assert running.line() == name
        assert running.terminate() == 9


def test_a_status_is_kept_though_children_are_ignored() -> None:
    """As whoever starts `fdbox run` may have it: then the kernel would forget the status."""
    ignored = ("env", "--ignore-signal=CHLD")
    with Running(["sh", "-c", "exit 7"], "--restart", "no", wrapper=ignored) as running:
        assert running.end() == 7


ORPHAN = """
reading, writing = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        os.read(reading, 1)
        while os.getppid() not in (parent, 1):
            time.sleep(0.001)
        say("orphan of", "us" if os.getppid() == parent else "init")
    os._exit(0)
"""


def test_orphans_are_reaped() -> None:
    code = f"parent = os.getppid(){ORPHAN}os.wait(); os.write(writing, b'x'); input()"
    with Running(program(code)) as running:
        assert running.line() == "orphan of us"
        until(lambda: len(children(running.process.pid)) == 1)
        running.tell("")
        assert running.end() == 0


@pytest.mark.root
def test_as_process_1_of_a_container() -> None:
    code = f"""
parent = os.getppid()
assert parent == 1
{ORPHAN}
os.wait()
os.write(writing, b"x")
while len([one for one in os.listdir("/proc") if one.isdigit()]) > 2:
    time.sleep(0.001)
say("reaped")
if not held:
    notify("FDSTORE=1", memory(""))
    barrier()
    sys.exit(3)
signal.pause()
"""
    wrapper = ("unshare", "--pid", "--fork", "--mount-proc")
    with Running(program(code), wrapper=wrapper) as running:
        lines = [running.line() for _ in range(4)]
        assert lines == ["orphan of us", "reaped"] * 2
        os.kill(running.child(), signal.SIGTERM)
        assert running.end() == 143


def test_what_it_leaves_behind_is_ended() -> None:
    """Also what does not end by SIGTERM."""
    code = """
if held:
    say("again")
    sys.exit(0)
notify("FDSTORE=1", memory(""))
for ignores in (False, True):
    if os.fork() == 0:
        if ignores:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say(os.getpid())
        signal.pause()
        os._exit(0)
input()
sys.exit(3)
"""
    with Running(program(code)) as running:
        left = [int(running.line()) for _ in range(2)]
        running.tell("")
        assert running.line() == "again"
        assert running.end() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def test_another_main_process() -> None:
    """One that forks itself into the background, and waits until all know it; then its end is what counts."""
    code = """
daemon = os.fork()
if daemon == 0:
    os.setsid()
    notify(f"MAINPID={os.getpid()}\\nREADY=1")
    os.kill(os.getppid(), signal.SIGKILL)
    input()
    sys.exit(6)
signal.pause()
"""
    with Running(program(code), "--restart", "no") as running:
        running.tell("")
        assert running.end() == 6


def test_who_cannot_be_the_main_process() -> None:
    code = """
notify("MAINPID=1")
notify(f"MAINPID={os.getppid()}")
notify("MAINPID=99999999999999999999")
notify("MAINPID=0")
barrier()
sys.exit(4)
"""
    with Running(program(code), "--restart", "no") as running:
        assert running.end() == 4
        assert running.log.count("is none of the program's processes") == 4


# --- the watchdog ----------------------------------------------------------------------------------------------------


def test_who_is_not_heard_of_is_ended() -> None:
    code = """
if held:
    say("again")
    sys.exit(0)
notify("FDSTORE=1\\nWATCHDOG_USEC=300000", memory(""))
for _ in range(5):
    time.sleep(0.1)
    notify("WATCHDOG=1")
say("still here")
signal.pause()
"""
    with Running(program(code)) as running:
        assert running.line() == "still here"
        assert running.line() == "again"
        assert running.end() == 0
        assert "not been heard of" in running.log
        assert "ended by SIGABRT" in running.log


def test_who_does_not_end_by_sigabrt_is_killed() -> None:
    code = """
signal.signal(signal.SIGABRT, signal.SIG_IGN)
notify("WATCHDOG_USEC=1000")
os.kill(os.getpid(), signal.SIGSTOP)
"""
    with Running(program(code), "--restart", "no") as running:
        assert running.end() == 137


# --- the store -------------------------------------------------------------------------------------------------------


def test_store_and_remove() -> None:
    code = """
if names == ["a", "a", "b", "stored"]:
    say(*[read(fd) for fd, _ in held], sorted(os.get_inheritable(fd) for fd, _ in held))
    notify("FDSTOREREMOVE=1\\nFDNAME=a")
elif not held:
    two = memory("two")
    notify("FDSTORE=1\\nFDNAME=a", memory("one"), two)
    notify("FDSTORE=1\\nFDNAME=b", two, memory("three"))
    notify("FDSTORE=1", memory("four"), os.dup(two))
    notify("FDSTORE=0\\nFDNAME=not", memory("five"))
    notify("READY=1\\nSTATUS=x", memory("six"))
else:
    say(*names)
    sys.exit(0)
barrier()
sys.exit(3)
"""
    with Running(program(code)) as running:
        assert running.line() == "one two three four [True, True, True, True]"
        assert running.line() == "b stored"
        assert running.end() == 0


def test_what_hangs_up_goes_unless_it_is_not_polled() -> None:
    code = """
if held:
    say(*names)
    sys.exit(0)
theirs, ours = zip(*[socket.socketpair() for _ in range(3)])
notify("FDSTORE=1\\nFDNAME=polled", theirs[0].fileno())
notify("FDSTORE=1\\nFDNAME=not-polled\\nFDPOLL=0", theirs[1].fileno())
notify("FDSTORE=1\\nFDNAME=alive", theirs[2].fileno())
reading, writing = os.pipe()
notify("FDSTORE=1\\nFDNAME=error", writing)  # EPOLLERR
notify("FDSTORE=1\\nFDNAME=hangup", os.dup(reading))
notify("FDSTORE=1\\nFDNAME=last", memory(""))
barrier()
ours[0].close()
ours[1].close()
os.close(reading)
os.close(writing)
notify("FDSTOREREMOVE=1\\nFDNAME=hangup")
barrier()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with Running(program(code)) as running:
        # a socket ends with the process: who lives on is only who has its other end in the store
        assert running.line() == "not-polled last"
        assert running.end() == 0


def test_a_barrier_comes_after_what_was_said_before() -> None:
    code = """
for at in range(200):
    notify(f"FDSTORE=1\\nFDNAME=n{at}", memory(""))
barrier()
say(len(os.listdir(f"/proc/{os.getppid()}/fd")) >= 200)
"""
    with Running(program(code)) as running:
        assert running.line() == "True"
        assert running.end() == 0


def test_the_last_words_of_a_child_are_heard() -> None:
    """A process that has said something and ended can be told from a stranger as long as it is not reaped."""
    code = """
if held:
    say(len(held))
    sys.exit(0)
for _ in range(4):
    if os.fork() == 0:
        for _ in range(100):
            if os.fork() == 0:
                notify("FDSTORE=1", memory(""))
                os._exit(0)
        os._exit(0)
    os.wait()
siblings = f"/proc/{os.getppid()}/task/{os.getppid()}/children"
while len(open(siblings).read().split()) > 1:
    time.sleep(0.001)
sys.exit(3)
"""
    with Running(program(code)) as running:
        assert running.line() == "400"
        assert running.end() == 0


def test_there_is_room_for_so_many() -> None:
    code = """
if held:
    say(len(held))
    sys.exit(0)
for _ in range(7):
    notify("FDSTORE=1", memory(""))
barrier()
sys.exit(int(os.environ["FDSTORE"]))
"""
    with Running(program(code), "--max-fds", "5") as running:
        assert running.line() == "5"
        assert running.end() == 0
        assert "ended with status 5" in running.log


def test_more_descriptors_than_select_knows() -> None:
    """The limit that it was started with is lifted; the program has as many of its own as before."""
    code = """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if held:
    say(soft, len(held), held[-1][0], all(read(fd) == name for fd, name in held))
    sys.exit(0)
say(soft)
for at in range(2000):
    fd = memory(f"n{at}")
    notify(f"FDSTORE=1\\nFDNAME=n{at}", fd)
    os.close(fd)
barrier()
sys.exit(3)
"""
    few = ("sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh")
    with Running(program(code), wrapper=few) as running:
        assert running.line() == "64"
        assert running.line() == "2064 2000 2002 True"
        assert running.end() == 0


def test_names_that_execve_does_not_take_are_not_told() -> None:
    """What is behind them is held; a program that could not be started would lose it all."""
    code = """
if held:
    say(len(held) > 500, len(held) < 600)
    sys.exit(0)
for at in range(600):
    notify(f"FDSTORE=1\\nFDNAME={at:0255}", memory(""))
    os.closerange(3, 5)
barrier()
sys.exit(3)
"""
    with Running(program(code)) as running:
        assert running.line() == "True True"
        assert running.end() == 0
        assert "held, but not given: their names are too long" in running.log


# --- who is heard, and what it sees ----------------------------------------------------------------------------------


def test_its_environment_is_its_own() -> None:
    code = """
say(*sorted(key for key in os.environ if key.startswith(("LISTEN", "WATCHDOG", "NOTIFY", "FDSTORE"))), os.environ["KEPT"])
say(os.environ["NOTIFY_SOCKET"] != "@not-there", os.environ["FDSTORE"], os.getpgrp() == os.getpid())
"""
    ours = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_USEC")
    environment = {**os.environ, **dict.fromkeys(ours, "1"), "FDSTORE": "9", "KEPT": "yes"}
    environment["NOTIFY_SOCKET"] = "@not-there"
    with Running(program(code), env=environment) as running:
        assert running.line() == "FDSTORE NOTIFY_SOCKET yes"
        assert running.line() == "True 4096 True"
        assert running.end() == 0
        assert "@not-there cannot be told" in running.log


def test_a_stranger_is_not_heard() -> None:
    code = """
say(os.environ["NOTIFY_SOCKET"])
input()
barrier()
supervisor = f"/proc/{os.getppid()}/fd/"
say([link for link in map(os.readlink, map(supervisor.__add__, os.listdir(supervisor))) if "memfd" in link])
"""
    with Running(program(code)) as running:
        with sdnotify.connect(running.line()) as ours, memfd.create("m") as fd:
            sdnotify.send(ours, {"FDSTORE": "1"}, [fd.fileno()])
            sdnotify.send(ours, {"MAINPID": str(os.getpid()), "WATCHDOG": "trigger"})
        running.tell("")
        assert running.line() == "[]"
        assert running.end() == 0
        assert running.log.count(f"process {os.getpid()} is none of the program's") == 2


def test_a_flood_of_words_keeps_nobody_from_ending_it() -> None:
    code = """
for _ in range(3):
    os.fork()
say("up")
while True:
    notify("STATUS=and so on")
"""
    with Running(program(code)) as running:
        assert [running.line() for _ in range(8)] == ["up"] * 8
        assert running.terminate() == 143


def test_who_started_us_hears_how_it_goes() -> None:
    """But not that the program stops while we do not."""
    with sdnotify.listen() as manager:
        environment = {**os.environ, "NOTIFY_SOCKET": sdnotify.address(manager)}
        code = """
notify("READY=1\\nSTATUS=at work\\nMAINPID=1\\nFDNAME=x")
notify("RELOADING=1\\nMONOTONIC_USEC=5")
notify("STOPPING=1")
barrier()
signal.signal(signal.SIGTERM, lambda *_: notify("STOPPING=1") or barrier() or sys.exit(0))
say("up")
while True:
    signal.pause()
"""
        with Running(program(code), env=environment) as running:
            assert running.line() == "up"
            assert sdnotify.receive(manager).fields == {"READY": "1", "STATUS": "at work"}
            told = sdnotify.receive(manager)
            assert told.fields == {"RELOADING": "1", "MONOTONIC_USEC": "5"}
            assert told.sender == running.process.pid
            with pytest.raises(BlockingIOError):
                sdnotify.receive(manager)
            assert running.terminate() == 0
            assert sdnotify.receive(manager).fields == {"STOPPING": "1"}


@pytest.mark.slow
def test_it_does_not_outlive_its_supervisor() -> None:
    code = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
say("ready")
signal.sigwait([signal.SIGTERM])
say("told to end")
"""
    with Running(program(code)) as running:
        assert running.line() == "ready"
        running.process.kill()
        assert running.line() == "told to end"
