"""The command line that others see of this process (/proc/PID/cmdline, proc_pid_cmdline(5))."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_ARG_START, _ARG_END = 47, 48  # fields of /proc/PID/stat, from 0: proc_pid_stat(5)


def show(words: list[str]) -> None:
    """Let this process be seen with these words, cut to the room that its real command line took.

    The kernel shows the memory where the arguments were put at execve(2); Python has copied them by now.
    OSError if /proc is not mounted.
    """
    text = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    # The second field, the program's name, may hold anything: what counts begins behind its parenthesis.
    fields = ["", "", *text.rpartition(")")[2].split()]
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    room = end - start
    if not start or room <= 0:
        return
    shown = b"\0".join(os.fsencode(word) for word in words)[: room - 1]
    ctypes.memset(start, 0, room)
    ctypes.memmove(start, shown, len(shown))
