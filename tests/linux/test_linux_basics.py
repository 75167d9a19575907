import errno
import mmap
import os
import socket
from pathlib import Path

import pytest

from fdbox.errors import KernelError
from fdbox.linux import (
    fdinfo,
    incarnation,
    kcmp,
    kexec,
    liveupdate,
    memfd,
    pagemap,
    peer,
    scm,
)
from fdbox.linux.fd import close_all, open_path


def _open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_owned_fd_closes_once_and_dup_is_the_same_file() -> None:
    before = _open_fds()
    with memfd.create("one", 10) as fd, fd.dup() as second:
        assert kcmp.same_file(fd.fileno(), second.fileno())
        with memfd.reopen(fd.fileno(), os.O_RDONLY) as other:
            assert not kcmp.same_file(fd.fileno(), other.fileno())
    fd.close()
    with pytest.raises(ValueError, match="closed"):
        fd.fileno()
    assert _open_fds() == before


def test_a_forgotten_descriptor_is_warned_of_and_closed() -> None:
    before = _open_fds()
    forgotten = memfd.create("forgotten")
    with pytest.warns(ResourceWarning, match="unclosed OwnedFd"):
        del forgotten
    assert _open_fds() == before


def test_memfd_has_no_exec_seal_and_keeps_its_position() -> None:
    page = mmap.PAGESIZE
    with memfd.create("näme (deleted)", 8 * page) as fd:
        number = fd.fileno()
        assert memfd.get_seals(number) == 0
        assert memfd.name_in(fdinfo.link_of(number)) == "näme (deleted)"
        assert memfd.is_shmem(number)
        assert not memfd.is_hugetlb(number)
        os.pwrite(number, b"x", 2 * page)
        os.lseek(number, 5, os.SEEK_SET)
        assert memfd.data_extents(number) == [(2 * page, page)]
        assert fdinfo.read(number).pos == 5
        memfd.add_seals(number, memfd.Seals.GROW | memfd.Seals.SEAL)
        with pytest.raises(KernelError) as caught:
            memfd.add_seals(number, memfd.Seals.WRITE)
        assert caught.value.errno == errno.EPERM


def test_descriptors_travel_close_on_exec_and_a_peek_takes_none() -> None:
    left, right = socket.socketpair()
    with left, right, memfd.create("sent") as fd:
        assert scm.send_with_fds(left, b"hello", [fd.fileno()] * scm.MAX_FDS) == 5
        before = _open_fds()
        assert scm.peek(right, 100) == b"hello"
        assert _open_fds() == before
        data, fds = scm.receive_with_fds(right, 100)
        assert (data, len(fds)) == (b"hello", scm.MAX_FDS)
        assert not os.get_inheritable(fds[0].fileno())
        close_all(fds)
        assert peer.credentials(left) == peer.Credentials(os.getpid(), os.getuid(), os.getgid())


def test_layout_and_numbers_are_those_of_the_header() -> None:
    assert (liveupdate.CREATE_SESSION, liveupdate.RETRIEVE_SESSION) == (0xBA00, 0xBA01)
    assert liveupdate.SESSION_PRESERVE_FD == 0xBA40
    assert liveupdate.SESSION_GET_NAME == 0xBA43
    layouts = (
        liveupdate.NAMED_SESSION,
        liveupdate.FD_TOKEN,
        liveupdate.FINISH,
        liveupdate.GET_NAME,
    )
    assert [layout.size for layout in layouts] == [72, 16, 8, 72]


@pytest.mark.skipif(Path(liveupdate.DEVICE).exists(), reason="this kernel has the device")
def test_without_the_device_it_is_unsupported() -> None:
    with pytest.raises(liveupdate.LiveUpdateUnsupported):
        liveupdate.Device.open()
    assert not kexec.handover_active()


def test_holders_names_this_process() -> None:
    with open_path("/proc/version", os.O_RDONLY):
        assert os.getpid() in [pid for pid, _ in liveupdate.holders("/proc/version")]


def test_frames_and_runs() -> None:
    assert pagemap.runs([7, 5, 6, 9]) == 2
    assert len(incarnation.boot_id()) == 36
    with mmap.mmap(-1, 4 * mmap.PAGESIZE) as memory:
        assert pagemap.frames(memory, len(memory)) == []
        memory[0] = 1
        if os.geteuid() == 0:
            assert len(pagemap.frames(memory, len(memory))) == 1
