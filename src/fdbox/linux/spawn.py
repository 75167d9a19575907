"""Programs and the descriptors they begin with: fork(2), execve(2), and the numbers that sd_listen_fds(3) expects."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fdbox.linux.fd import OwnedFd
from fdbox.linux.syscalls import last_error, libc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIRST = 3  # SD_LISTEN_FDS_START

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ATTEMPTS = 3

_ERRNO = array.array("i", [0])

#: (soft, hard), as getrlimit(2) has them
Limit = tuple[int, int]


def become(
    command: Sequence[str],
    environment: Mapping[str, str],
    fds: Sequence[int],
    file_limit: Limit | None = None,
) -> NoReturn:
    """Turn this process into a program, with `fds` as its descriptors 3, 4, ..., and then this RLIMIT_NOFILE.

    Where the environment has LISTEN_FDS it gets LISTEN_PID.

    Whatever had these numbers is closed, so that this process is of no use any more when it fails.
    Python's changes to signals are undone: the program begins with none ignored or blocked.

    OSError: the program is not there, cannot be run (EACCES, ENOEXEC), or its arguments are too long (E2BIG).
    """
    # First out of the way: a number from 3 on may be one of those that are still to be moved.
    above = FIRST + len(fds)
    moved = [fd if fd >= above else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
    for number, fd in enumerate(moved, FIRST):
        os.dup2(fd, number)
    if file_limit is not None:  # only now: a number over it could not be made
        resource.setrlimit(resource.RLIMIT_NOFILE, file_limit)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    addressed = {"LISTEN_PID": str(os.getpid())} if "LISTEN_FDS" in environment else {}
    os.execvpe(command[0], list(command), {**environment, **addressed})  # noqa: S606 - no shell is wanted


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    fds: Sequence[int],
    *,
    supervised: bool = False,
    file_limit: Limit | None = None,
) -> int:
    """Return the pid of a new child that is a program as `become` makes it; errors as `become`.

    For a process with one thread: a fork takes no other one along. A `supervised` child leads a process group, and gets
    SIGTERM when this process ends. `file_limit` is what it has of RLIMIT_NOFILE, if not what this process has.
    """
    supervisor = os.getpid() if supervised else None
    reading, writing = (OwnedFd(end) for end in os.pipe2(os.O_CLOEXEC))
    with reading:
        with writing:
            child = os.fork()
            if child == 0:
                _be_child(
                    command, environment, fds, writing.fileno(), file_limit, supervisor=supervisor
                )
        failed = os.read(reading.fileno(), _ERRNO.itemsize)
    if failed:
        os.waitpid(child, 0)
        code = array.array("i", failed)[0]
        raise OSError(code, os.strerror(code), command[0])
    return child


def raise_file_limit() -> Limit:
    """Let this process have as many descriptors as it may (RLIMIT_NOFILE); return the limit from before."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


def adopt_orphans() -> None:
    """Have this process become the parent of every descendant whose own parent ends (PR_SET_CHILD_SUBREAPER, Linux 3.4)."""
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise last_error()


def parent_of(pid: int) -> int:
    """Return the parent of a process; 0 if there is no such process, or it has none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.rpartition(")")[2].split()[1])


def descends_from(pid: int, ancestor: int) -> bool:
    """Return whether a process is a child of `ancestor`, or a child's child, and so on.

    One in between may end just now; then its children have another parent, and are asked once more.
    """
    return any(_leads_up(pid, ancestor) for _ in range(_ATTEMPTS))


def _leads_up(pid: int, ancestor: int) -> bool:
    while pid not in (0, ancestor):
        pid = parent_of(pid)
    return pid != 0


def _end_with(parent: int) -> None:
    """Have this process get SIGTERM when its parent ends, or now, if it has ended already."""
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0):
        raise last_error()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _be_child(  # noqa: PLR0913 - what a child is made of
    command: Sequence[str],
    environment: Mapping[str, str],
    fds: Sequence[int],
    failure: int,
    file_limit: Limit | None,
    *,
    supervisor: int | None,
) -> NoReturn:
    """Become the program, or tell why not; nothing of the parent may go on in this process."""
    code = 0
    try:
        if supervisor is not None:
            os.setpgid(0, 0)
            _end_with(supervisor)
        # It must not be in the way of what is moved to 3, 4, ...
        failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, FIRST + 2 * len(fds))
        become(command, environment, fds, file_limit)
    except OSError as error:
        code = error.errno or 0
    finally:
        with contextlib.suppress(OSError):
            os.write(failure, array.array("i", [code]).tobytes())
        os._exit(127)
