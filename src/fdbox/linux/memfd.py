"""Anonymous memory behind a descriptor (memfd_create(2), F_ADD_SEALS in fcntl(2))."""

from __future__ import annotations

import enum
import errno
import fcntl
import functools
import mmap
import os

from fdbox.errors import KernelError
from fdbox.linux import paths
from fdbox.linux.fd import OwnedFd, open_path

# include/uapi/linux/memfd.h
_MFD_NOEXEC_SEAL = 0x0008  # Linux 6.3
_MFD_EXEC = 0x0010  # Linux 6.3
_MFD_HUGE_SHIFT = 26  # include/uapi/asm-generic/hugetlb_encode.h
#: bytes that a name can have (mm/memfd.c: MFD_NAME_MAX_LEN)
MAX_NAME = 249

_REMEDIES = {
    errno.EACCES: "the sysctl vm.memfd_noexec = 2 forbids executable memfds: set it to 1 or 0",
    errno.EINVAL: "a name has at most 249 bytes, and a hugetlb size is a multiple of its page",
    errno.EMFILE: "raise RLIMIT_NOFILE",
    errno.ENOMEM: "free memory",
    errno.ENODEV: "the kernel has no huge pages of this size",
    errno.EPERM: "the file has F_SEAL_SEAL: it takes no more seals",
    errno.EBUSY: "unmap every writable mapping first, and wait until the kernel has let go of it",
}


class Seals(enum.IntFlag):
    """F_SEAL_* (include/uapi/linux/fcntl.h)."""

    SEAL = 0x0001
    SHRINK = 0x0002
    GROW = 0x0004
    WRITE = 0x0008
    FUTURE_WRITE = 0x0010
    EXEC = 0x0020


def _failed(what: str, error: OSError) -> KernelError:
    code = error.errno or 0
    return KernelError(f"{what}: {error.strerror}", errno=code, remedy=_REMEDIES.get(code))


def create(
    name: str,
    size: int = 0,
    *,
    huge_page: int = 0,
    allow_sealing: bool = True,
    seal_exec: bool = False,
) -> OwnedFd:
    """Return a new memfd of `size` bytes, close-on-exec.

    MFD_EXEC is asked for unless `seal_exec`: with vm.memfd_noexec = 1 the kernel would add F_SEAL_EXEC by itself, and
    a file with that seal arrives read-only after a live update (mm/memfd_luo.c).

    Args:
        name: At most 249 bytes; shown in /proc.
        size: Bytes; a multiple of `huge_page`.
        huge_page: Bytes of a page of hugetlbfs, a power of two (MFD_HUGETLB), which no kernel carries over yet.
            For transparent huge pages leave it and use `madvise_hugepage`.
        allow_sealing: Seals may be added (seal_exec implies it).
        seal_exec: No execution, for ever (MFD_NOEXEC_SEAL).

    Raises:
        KernelError: EINVAL, EACCES, EMFILE, ENFILE, ENOMEM, ENODEV.
    """
    flags = os.MFD_CLOEXEC
    flags |= os.MFD_ALLOW_SEALING if allow_sealing else 0
    if huge_page:
        flags |= os.MFD_HUGETLB | (huge_page.bit_length() - 1) << _MFD_HUGE_SHIFT
    try:
        fd = _create(name, flags, _MFD_NOEXEC_SEAL if seal_exec else _MFD_EXEC)
    except OSError as error:
        raise _failed(f"cannot create the memfd {name!r}", error) from error
    try:
        os.ftruncate(fd.fileno(), size)
    except OSError as error:
        fd.close()
        raise _failed(f"cannot give the memfd {name!r} {size} bytes", error) from error
    return fd


def _create(name: str, flags: int, exec_flag: int) -> OwnedFd:
    try:
        return OwnedFd(os.memfd_create(name, flags | exec_flag))
    except OSError as error:
        # Before 6.3 neither flag exists, and every memfd is executable: MFD_EXEC can be left out, the seal cannot.
        if error.errno != errno.EINVAL or exec_flag == _MFD_NOEXEC_SEAL:
            raise
    return OwnedFd(os.memfd_create(name, flags))


def accepts_seals(fd: int) -> bool:
    """Return whether the file is of tmpfs or hugetlbfs, for only these answer F_GET_SEALS; this never blocks."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def get_seals(fd: int) -> Seals:
    """Return the seals of a memfd; KernelError with EINVAL if the file has none (no shmem)."""
    try:
        return Seals(fcntl.fcntl(fd, fcntl.F_GET_SEALS))
    except OSError as error:
        raise _failed(f"cannot read the seals of descriptor {fd}", error) from error


def add_seals(fd: int, seals: Seals) -> None:
    """Add seals; KernelError: EPERM (F_SEAL_SEAL, or not open for writing), EBUSY, EINVAL."""
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, int(seals))
    except OSError as error:
        raise _failed(f"cannot add {seals!r} to descriptor {fd}", error) from error


def name_in(link: str) -> str:
    """Return the name in a memfd's /proc/self/fd link: what it was created with, or "" if it is none.

    A memfd that came through a live update has lost it ("/ (deleted)").
    """
    if not link.startswith("/memfd:"):
        return ""
    return link.removeprefix("/memfd:").removesuffix(" (deleted)")


@functools.cache
def device() -> int:
    """Return the st_dev of every memfd of ordinary pages: they lie on a mount inside the kernel that nobody else sees."""
    with create("fdbox-probe") as probe:
        return os.fstat(probe.fileno()).st_dev


def is_shmem(fd: int) -> bool:
    """Return whether the file is of tmpfs or anonymous shared memory; KernelError EBADF."""
    return paths.filesystem(fd) == paths.TMPFS


def is_hugetlb(fd: int) -> bool:
    """Return whether the file is of hugetlbfs (which no kernel carries over yet)."""
    return paths.filesystem(fd) == paths.HUGETLBFS


def reopen(fd: int, flags: int) -> OwnedFd:
    """Return a new open file description of the same file, with a position of its own.

    KernelError: EACCES, ENXIO (a socket), ETXTBSY, ENOENT (/proc is not mounted).
    """
    try:
        return open_path(f"/proc/self/fd/{fd}", flags)
    except PermissionError as error:  # which has another remedy than memfd_create's
        raise KernelError(
            f"cannot open descriptor {fd} again: {error.strerror}",
            errno=error.errno or 0,
            remedy="the mode of the file must allow it, or fdbox must run as root",
        ) from error
    except OSError as error:
        raise _failed(f"cannot open descriptor {fd} again", error) from error


def data_extents(fd: int) -> list[tuple[int, int]]:
    """Return (offset, length) of everything that is not a hole; the file's position stays.

    The file is opened anew for it: SEEK_DATA would move a position that other processes share.
    """
    found: list[tuple[int, int]] = []
    with reopen(fd, os.O_RDONLY) as own:
        end = 0
        while True:
            try:
                start = os.lseek(own.fileno(), end, os.SEEK_DATA)
                end = os.lseek(own.fileno(), start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end
                    return found
                raise _failed(f"cannot find the holes of descriptor {fd}", error) from error
            found.append((start, end - start))


def madvise_hugepage(buffer: mmap.mmap) -> bool:
    """Return whether the kernel takes the advice to use transparent huge pages (madvise(2))."""
    try:
        buffer.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a kernel without CONFIG_TRANSPARENT_HUGEPAGE
            return False
        raise _failed("cannot advise huge pages", error) from error
    return True
