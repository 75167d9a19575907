"""What is so on this machine, as far as this process may see it; None is what it may not, or what is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fdbox.errors import FdboxError
    from fdbox.model import Carriage
    from fdbox.nextkernel.inspect import KernelImage
    from fdbox.nextkernel.running import Running
    from fdbox.nextkernel.verdict import Problem
    from fdbox.varlink.interface import Prediction, StatusReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """The next kernel: its image, its initrd's bytes, and what is wrong with it."""

    image: KernelImage
    initrd: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """The daemon that serves here."""

    status: StatusReply
    #: the user it runs as, and its process; 0: not seen from here
    uid: int
    pid: int
    #: how memory in boxes lies, and what it adds to an update by the kernel; None: only root may ask
    prediction: Prediction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Who would update: the daemon, or this process, which is taken for it where it is not there or not to be seen."""

    who: str
    capabilities: frozenset[str] | None = None
    #: whether its namespaces are the machine's own
    pid_namespace: bool | None = None
    user_namespace: bool | None = None
    #: how far its RLIMIT_NOFILE can be raised
    descriptors: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the one who asks has named, or found."""

    #: where images go; None: no such place is known
    image_directory: Path | None
    daemon: Daemon | None = None
    #: who is at its socket instead
    silent: str = ""
    #: a next kernel, its initrd's bytes, its command line
    chosen: tuple[KernelImage, int, str] | None = None
    #: why the newest kernel that is installed could not be looked at
    not_chosen: str = ""
    #: what is wrong with the configuration
    misconfigured: FdboxError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that checks look at."""

    asked: Asked
    running: Running
    #: how the running command line has kho= and liveupdate=
    kho_said: bool | None = None
    luo_said: bool | None = None
    next: Next | None = None
    #: whether the device takes memory, tried; None: it is not for us to try
    kernel: Carriage | None = None
    holders: tuple[tuple[int, str], ...] | None = None
    #: kexec_file_load(2) is there, asked
    kexec_file: bool | None = None
    load_disabled: int | None = None
    load_limit: int | None = None
    lockdown: str | None = None
    secure_boot: bool | None = None
    #: IMA's rule for kernels
    appraised: str | None = None
    #: bytes of each area that the next kernel starts in
    scratch: tuple[int, ...] | None = None
    process: Process
    #: /proc is there, whole: what a descriptor is, is read there
    proc: bool = True
    #: fs.nr_open: what no limit goes beyond
    descriptors_at_most: int | None = None
    #: why kcmp(2) cannot be used; empty: it can
    no_kcmp: str = ""
    shmem_huge: str | None = None
    memfd_noexec: int | None = None
    #: seconds by which the hardware's clock differs from ours
    clock_error: int | None = None
    #: of systemd as PID 1
    systemd: int | None = None
    unit: Mapping[str, str] = field(default_factory=dict)
    #: of the code that is installed
    version: str = ""
    images: Carriage | None = None
    #: bytes that the file system of images has free
    images_free: int | None = None
    #: they go to an overlay, and what that writes to is not seen from here
    images_may_be_in_memory: bool = False
    memory_free: int | None = None
