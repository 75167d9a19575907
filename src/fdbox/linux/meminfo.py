"""How much memory there is to take (proc_meminfo(5), Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available() -> int:
    """Return the bytes that can be taken without swapping or killing: MemAvailable, or what the cgroup leaves of it.

    OSError if /proc is not mounted.
    """
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return min([int(value.split()[0]) << 10, *_cgroup_room()])
    raise OSError("/proc/meminfo has no MemAvailable")


def _cgroup_room() -> list[int]:
    """Return what each cgroup (v2) above this process still leaves, where it sets a limit."""
    room = []
    path = _own_cgroup()
    while path is not None and path != _CGROUPS and path.is_relative_to(_CGROUPS):
        try:
            limit = (path / "memory.max").read_text(encoding="ascii").strip()
            if limit != "max":
                used = int((path / "memory.current").read_text(encoding="ascii"))
                room.append(max(0, int(limit) - used))
        except FileNotFoundError:  # the memory controller is not on here
            pass
        path = path.parent
    return room


def _own_cgroup() -> Path | None:
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # a kernel without cgroups
        return None
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    return None if own is None else _CGROUPS / own.lstrip("/")
