"""Checks of the one who would update: what it may do, how it is kept alive, and what it was told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fdbox.errors import KeeperGone
from fdbox.linux.privilege import CAPABILITIES
from fdbox.service.doctor.said import WAYS, Said, obstacle, ok, unknown, warning

if TYPE_CHECKING:
    from fdbox.service.doctor.facts import Facts

_WHERE_IT_IS = "run this as root where fdbox runs, with /proc mounted"
#: what systemd needs for the unit: a store that outlives the service, and survival of the shutdown
_STORE_SINCE, _SURVIVAL_SINCE = 254, 255
#: as systemd/fdbox.service has them
_STORE_WANTED = 18000
_DESCRIPTORS_WANTED = 34816
#: twice a descriptor, for the time of a start, and what is no entry
_DESCRIPTORS_EACH, _DESCRIPTORS_MORE = 2, 2048
#: what is lost without each; without CAP_SYS_BOOT, everything
_FOR = {
    "CAP_CHOWN": "the owners of other users' files",
    "CAP_DAC_OVERRIDE": "other users' files, by their paths",
    "CAP_DAC_READ_SEARCH": "files watched by inotify, by their handles",
    "CAP_SETUID": "other users' files, as they may open them",
    "CAP_NET_ADMIN": "tun devices, and socket buffers over the limit",
    "CAP_NET_BIND_SERVICE": "sockets at ports below 1024",
    "CAP_SYS_ADMIN": "fanotify, and where memory lies",
    "CAP_WAKE_ALARM": "timers that wake the machine",
}


def namespace(facts: Facts) -> Said:
    """Whether this is the machine itself, or a container."""
    who, own = facts.process.who, (facts.process.pid_namespace, facts.process.user_namespace)
    outside = "run fdbox on the machine itself"
    if own[0] is False:
        return obstacle(
            f"{who} is in a container (a pid namespace): reboot(2) ends only that", outside, WAYS
        )
    if own[1] is False:
        return obstacle(
            f"{who} is in a container (a user namespace): its root can neither load nor start a kernel",
            outside,
            WAYS,
        )
    if None in own:
        return unknown(
            f"whether {who} is in a container is not to be seen",
            _WHERE_IT_IS,
        )
    return ok(f"{who} is in the machine's own namespaces of pids and users")


def proc(facts: Facts) -> Said:
    """Whether /proc is there, where fdbox reads what a descriptor is."""
    if not facts.proc:
        return obstacle(
            "there is no /proc, where fdbox reads what a descriptor is",
            "mount -t proc proc /proc",
            WAYS,
        )
    return ok("/proc is there")


def capabilities(facts: Facts) -> Said:
    """What the one who updates has to be able to do."""
    who, has = facts.process.who, facts.process.capabilities
    if has is None:
        return unknown(f"the capabilities of {who} are not to be seen", _WHERE_IT_IS)
    if "CAP_SYS_BOOT" not in has:
        return obstacle(
            f"{who} has no CAP_SYS_BOOT: it can neither load nor start a kernel",
            "run fdbox, and this, as root",
            WAYS,
        )
    missing = [name for name in sorted(CAPABILITIES) if name not in has]
    if missing:
        lost = "; ".join(f"{name}: {_FOR[name]}" for name in missing)
        return warning(f"{who} cannot make everything again; it lacks {lost}", "run fdbox as root")
    return ok(f"{who} has all the capabilities that it needs")


def kcmp(facts: Facts) -> Said:
    """Whether the kernel tells which descriptors are one open file."""
    if facts.no_kcmp:
        return warning(
            f"boxes may not be sealed: {facts.no_kcmp}",
            "run a kernel with CONFIG_KCMP; let no seccomp filter forbid kcmp(2)",
        )
    return ok("kcmp(2) tells which descriptors are one open file")


def descriptors(facts: Facts) -> Said:
    """How many descriptors the daemon could hold."""
    who, limit = facts.process.who, facts.process.descriptors
    if limit is None:
        return unknown(f"RLIMIT_NOFILE of {who} is not to be seen", "mount /proc")
    held = 0 if facts.asked.daemon is None else facts.asked.daemon.status.entries
    wanted = max(_DESCRIPTORS_WANTED, held * _DESCRIPTORS_EACH + _DESCRIPTORS_MORE)
    text = f"RLIMIT_NOFILE of {who} is at most {limit}"
    if limit >= wanted:
        return ok(text)
    remedy = f"raise it to {wanted} for {max(held, 16384):,} entries (LimitNOFILE=, ulimit -n)"
    if facts.descriptors_at_most is not None and facts.descriptors_at_most < wanted:
        remedy = f"sysctl fs.nr_open={wanted}; then {remedy}"
    return warning(text, remedy)


def configuration(facts: Facts) -> Said:
    """Whether the daemon's configuration can be used."""
    error = facts.asked.misconfigured
    if error is None:
        return ok("the configuration can be used, or there is none")
    if facts.asked.daemon is None:
        return obstacle(error.message, error.remedy, WAYS)
    return warning(f"{error.message}: the fdbox that serves has an earlier one", error.remedy)


def daemon(facts: Facts) -> Said:
    """Whether fdbox serves, and is the one that is installed."""
    if facts.asked.silent:
        return warning(
            facts.asked.silent, "find it (ss -xlp), end it, and start fdbox: fdbox serve"
        )
    if facts.asked.daemon is None:
        return warning("no fdbox answers here", "start it: fdbox serve, or systemctl start fdbox")
    status = facts.asked.daemon.status
    if not status.kept:
        return warning(
            "fdbox serves without its keeper, which has ended: nothing new can be put into boxes",
            KeeperGone.remedy,
        )
    if facts.version and status.version != facts.version:
        return warning(
            f"fdbox {status.version} serves, and {facts.version} is installed", "fdbox reexec"
        )
    return ok(f"fdbox {status.version} holds {status.entries} entries in {status.boxes} boxes")


def systemd(facts: Facts) -> Said:
    """Whether systemd, if it is PID 1, lets fdbox live as long as it has to."""
    if facts.systemd is None:
        return ok("systemd is not PID 1: fdbox makes the jump itself")
    if facts.systemd < _STORE_SINCE:
        return warning(
            f"systemd {facts.systemd} lets go of stores when a service stops",
            f"use systemd {_SURVIVAL_SINCE}, or run fdbox outside of a unit",
        )
    if facts.systemd < _SURVIVAL_SINCE:
        return warning(
            f"systemd {facts.systemd} has no SurviveFinalKillSignal=",
            "fdbox as root is spared by its name all the same; better systemd 255",
        )
    return ok(f"systemd {facts.systemd}")


def unit(facts: Facts) -> Said:
    """Whether fdbox.service is there, and as it was shipped."""
    if facts.systemd is None:
        return ok("no unit is needed")
    if facts.unit.get("LoadState") != "loaded":
        return warning(
            "fdbox.service is not installed",
            "install systemd/fdbox.service in /etc/systemd/system, and enable it",
        )
    wrong = _unlike_shipped(facts)
    if not wrong:
        return ok("fdbox.service is there, with a store that outlives it, and no shutdown ends it")
    have = ", ".join(f"{name}={facts.unit.get(name, '')}" for name in wrong)
    shipped = " ".join(f"{name}={wanted}" for name, wanted in wrong.items())
    return warning(f"fdbox.service has {have}", f"as it is shipped: {shipped}")


def _unlike_shipped(facts: Facts) -> dict[str, str]:
    """Return the settings that end fdbox, or let go of what it holds, with what they should be."""
    has = facts.unit
    wrong = {}
    for name, least in (
        ("FileDescriptorStoreMax", _STORE_WANTED),
        ("LimitNOFILE", _DESCRIPTORS_WANTED),
    ):
        value = has.get(name, "0")
        if value != "infinity" and (not value.isdecimal() or int(value) < least):
            wrong[name] = str(least)
    # DefaultDependencies= adds Conflicts=shutdown.target: fdbox would end before the jump, and its boxes with it.
    wanted = {"FileDescriptorStorePreserve": "yes", "DefaultDependencies": "no"}
    if (facts.systemd or 0) >= _SURVIVAL_SINCE:
        wanted["SurviveFinalKillSignal"] = "yes"
    return wrong | {name: value for name, value in wanted.items() if has.get(name) != value}
