"""What the kernel refuses, and how it is said; without a live update device (tests/vm has that)."""

from __future__ import annotations

import errno
import mmap
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fdbox.address import default_socket
from fdbox.errors import InvalidDescriptor, KernelError, UsageError
from fdbox.kinds.look import glance, look
from fdbox.linux import (
    fdinfo,
    kcmp,
    kexec,
    liveupdate,
    memfd,
    meminfo,
    pagemap,
    scm,
    syscalls,
)
from fdbox.linux.fd import OwnedFd, close_all, dup, open_path
from fdbox.nextkernel.load import RunningKernel

CLOSED = 987_654


def code_of(error: pytest.ExceptionInfo[KernelError]) -> str:
    return errno.errorcode[error.value.errno]


# --- descriptors ---------------------------------------------------------------------------------------------------


def test_a_descriptor_is_given_away_once() -> None:
    fd = OwnedFd(os.dup(0))
    assert not fd.closed
    number = fd.detach()
    assert repr(fd) == "OwnedFd(closed)"
    with pytest.raises(ValueError, match="closed"):
        fd.detach()
    with OwnedFd(number) as again:
        assert repr(again) == f"OwnedFd({number})"


def test_a_negative_number_is_no_descriptor() -> None:
    with pytest.raises(ValueError, match="-1"):
        OwnedFd(-1)


def test_all_are_closed_also_after_an_error() -> None:
    good, bad = OwnedFd(os.dup(0)), OwnedFd(CLOSED)
    with pytest.raises(OSError, match="Bad file descriptor"):
        close_all([bad, good])
    assert good.closed


def test_what_is_not_open_is_said_so() -> None:
    with pytest.raises(InvalidDescriptor):
        look(CLOSED)
    with pytest.raises(InvalidDescriptor):
        glance(CLOSED)
    for function in (memfd.get_seals, fdinfo.link_of, memfd.is_shmem, fdinfo.read):
        with pytest.raises(KernelError, match=str(CLOSED)):
            function(CLOSED)
    with pytest.raises(KernelError) as caught:
        kcmp.order(0, CLOSED)
    assert code_of(caught) == "EBADF"
    with pytest.raises(OSError, match="Bad file"):
        dup(CLOSED)


def test_fdinfo_that_is_none() -> None:
    with pytest.raises(KernelError, match="not a fdinfo file"):
        fdinfo.parse("pos: x")
    found = fdinfo.parse("pos:\t0\nflags:\t02\nmnt_id:\t9\ntfd: 1\ntfd: 2\ninotify wd:1 ino:2\n")
    assert found.extra == {"tfd": "1\n2", "inotify": "wd:1 ino:2"}


# --- memory --------------------------------------------------------------------------------------------------------


def test_memfds_that_cannot_be() -> None:
    with pytest.raises(KernelError, match="at most 249 bytes"):
        memfd.create("x" * 250)
    with pytest.raises(KernelError, match="-1 bytes"):
        memfd.create("x", -1)
    left, right = socket.socketpair()
    with left, right, pytest.raises(KernelError) as caught:
        memfd.reopen(left.fileno(), os.O_RDONLY)
    assert code_of(caught) == "ENXIO"
    with memfd.create("never to be executed", seal_exec=True) as fd:
        assert memfd.get_seals(fd.fileno()) == memfd.Seals.EXEC
        assert memfd.accepts_seals(fd.fileno())
    with open_path("/proc/version", os.O_RDONLY) as file:
        assert not memfd.accepts_seals(file.fileno())
        assert memfd.name_in(fdinfo.link_of(file.fileno())) == ""
        with pytest.raises(KernelError, match="cannot find the holes"):
            memfd.data_extents(file.fileno())


def test_huge_pages_are_advised() -> None:
    with mmap.mmap(-1, 4 << 20) as buffer:
        assert (
            memfd.madvise_hugepage(buffer) == Path("/sys/kernel/mm/transparent_hugepage").exists()
        )


def test_free_memory_is_what_the_machine_or_the_cgroup_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = meminfo.available()
    assert 0 < without <= os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    group = tmp_path / "outer" / "inner"
    group.mkdir(parents=True)
    (tmp_path / "outer" / "memory.max").write_text("5000\n")
    (tmp_path / "outer" / "memory.current").write_text("3000\n")
    (group / "memory.max").write_text("max\n")
    monkeypatch.setattr(meminfo, "_CGROUPS", tmp_path)
    monkeypatch.setattr(meminfo, "_own_cgroup", lambda: group)
    assert meminfo.available() == 2000
    (tmp_path / "outer" / "memory.current").write_text("6000\n")
    assert meminfo.available() == 0


def test_frames_of_nothing() -> None:
    assert pagemap.frames(4096, 0) == []
    assert pagemap.runs([]) == 0


# --- sockets -------------------------------------------------------------------------------------------------------


def test_descriptors_need_a_byte_and_a_limit() -> None:
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(ValueError, match="at least one byte"):
            scm.send_with_fds(left, b"", [0])
        with pytest.raises(ValueError, match="at most 253"):
            scm.send_with_fds(left, b"x", [0] * 254)
        assert scm.send_with_fds(left, b"x", []) == 1


def test_descriptors_that_do_not_fit_are_closed_and_told() -> None:
    """In a process of its own, whose limit leaves room for some of them."""
    program = """
import os, resource, socket
from fdbox.linux import scm
left, right = socket.socketpair()
scm.send_with_fds(left, b"x", [0] * 20)
lowest = os.dup(0); os.close(lowest)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 5, lowest + 5))
try:
    scm.receive_with_fds(right, 10)
except scm.TruncatedDescriptors as error:
    print(error.message)
assert os.dup(0) == lowest, "all were closed"
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert said.stdout == "a message lost descriptors; 5 came and were closed\n"


# --- system calls ----------------------------------------------------------------------------------------------------


def test_an_architecture_without_numbers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(KernelError, match="pdp11"):
        syscalls.syscall("kcmp", 1)


def test_what_is_no_kernel_is_not_loaded() -> None:
    with open_path(__file__, os.O_RDONLY) as file, pytest.raises(KernelError) as caught:
        RunningKernel().load(file.fileno(), None, "")
    assert code_of(caught) in ("ENOEXEC", "EPERM", "ENOSYS")
    assert caught.value.remedy
    assert not kexec.kexec_loaded()


# --- the device ------------------------------------------------------------------------------------------------------


def test_what_is_not_the_device_is_said_so() -> None:
    with liveupdate.Device.open("/dev/null") as device:
        for ask in (device.create_session, device.retrieve_session):
            with pytest.raises(liveupdate.LiveUpdateUnsupported):
                ask("name")
            for bad in ("", "x" * 64, b"a\0b"):
                with pytest.raises(liveupdate.SessionNameInvalid):
                    ask(bad)


def test_what_is_no_session_is_said_so() -> None:
    with liveupdate.Session(open_path("/dev/null", os.O_RDWR)) as session:
        for ask in (
            lambda: session.preserve(0, 1),
            lambda: session.retrieve(1),
            session.finish,
            session.name,
        ):
            with pytest.raises(liveupdate.LiveUpdateUnsupported):
                ask()
        for token in (-1, 1 << 64):
            with pytest.raises(ValueError, match="64-bit"):
                session.preserve(0, token)


@pytest.mark.parametrize("path", ["/nonexistent/liveupdate", "/proc/version/x"])
def test_a_device_that_is_not_there(path: str) -> None:
    with pytest.raises(KernelError):
        liveupdate.Device.open(path)


def test_who_holds_the_device_is_named() -> None:
    with open_path("/proc/version", os.O_RDONLY):
        assert f"(pid {os.getpid()})" in liveupdate._busy("/proc/version").message
    assert "not seen" in liveupdate._busy("/nonexistent").message


# --- where the socket is ---------------------------------------------------------------------------------------------


def test_the_socket_is_where_the_manual_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDBOX_SOCKET", "/a/b")
    assert default_socket() == Path("/a/b")
    monkeypatch.delenv("FDBOX_SOCKET")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_socket() == Path("/run/fdbox/io.fdbox")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert default_socket() == Path("/run/user/1000/fdbox/io.fdbox")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(UsageError, match="no place"):
        default_socket()
