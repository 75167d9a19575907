"""/dev/liveupdate, the kernel's Live Update Orchestrator (include/uapi/linux/liveupdate.h).

Every structure begins with its own size; the kernel takes a larger one if its tail is zero (else E2BIG). All requests are
_IO(0xBA, n), though they carry a structure. What each errno means here is in the tables at `Device` and `Session`.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fdbox.errors import KernelError
from fdbox.linux.fd import OwnedFd, open_path
from fdbox.linux.liveupdate_errors import (
    FdAlreadyPreserved,
    FdInvalid,
    FdNotSupported,
    LiveUpdateBroken,
    LiveUpdateBusy,
    LiveUpdateDenied,
    LiveUpdateUnsupported,
    SessionAlreadyRetrieved,
    SessionExists,
    SessionNameInvalid,
    SessionUnknown,
    SessionWrongState,
    TokenInUse,
    TokenUnknown,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

__all__ = [
    "DEVICE",
    "NAME_LENGTH",
    "Device",
    "FdAlreadyPreserved",
    "FdInvalid",
    "FdNotSupported",
    "LiveUpdateBroken",
    "LiveUpdateBusy",
    "LiveUpdateDenied",
    "LiveUpdateUnsupported",
    "Session",
    "SessionAlreadyRetrieved",
    "SessionExists",
    "SessionNameInvalid",
    "SessionUnknown",
    "SessionWrongState",
    "TokenInUse",
    "TokenUnknown",
    "holders",
    "preserve_error",
]

DEVICE = "/dev/liveupdate"
NAME_LENGTH = 64  # LIVEUPDATE_SESSION_NAME_LENGTH, with the NUL

# _IO(0xBA, number), as x86 and arm64 compute it: no other architecture has the orchestrator.
CREATE_SESSION = 0xBA00
RETRIEVE_SESSION = 0xBA01
SESSION_PRESERVE_FD = 0xBA40
SESSION_RETRIEVE_FD = 0xBA41
SESSION_FINISH = 0xBA42
SESSION_GET_NAME = 0xBA43

# Each begins with `__u32 size`. struct, not ctypes: it is done for every descriptor, and takes a third of the time.
#: liveupdate_ioctl_create_session, _retrieve_session: __s32 fd (output), __u8 name[64]
NAMED_SESSION = struct.Struct("=Ii64s")
#: liveupdate_session_preserve_fd, _retrieve_fd: __s32 fd (output of retrieve), __aligned_u64 token
FD_TOKEN = struct.Struct("=IiQ")
#: liveupdate_session_finish: __u32 reserved
FINISH = struct.Struct("=II")
#: liveupdate_session_get_name: __u32 reserved, __u8 name[64] (output)
GET_NAME = struct.Struct("=II64s")

_pack, _FD_TOKEN_SIZE = FD_TOKEN.pack, FD_TOKEN.size

Errors = dict[int, type[KernelError]]

_OPEN: Errors = {
    errno.ENOENT: LiveUpdateUnsupported,
    errno.ENODEV: LiveUpdateUnsupported,
    errno.ENXIO: LiveUpdateUnsupported,
    errno.EACCES: LiveUpdateDenied,
    errno.EPERM: LiveUpdateDenied,
    errno.EIO: LiveUpdateBroken,
}
_NOT_OURS: Errors = {errno.ENOTTY: LiveUpdateUnsupported}  # the descriptor is of another kind
_CREATE: Errors = {**_NOT_OURS, errno.EEXIST: SessionExists, errno.EINVAL: SessionNameInvalid}
_FIND: Errors = {
    **_NOT_OURS,
    errno.ENOENT: SessionUnknown,
    errno.EINVAL: SessionAlreadyRetrieved,
}
_PRESERVE: Errors = {
    **_NOT_OURS,
    errno.ENOENT: FdNotSupported,
    errno.EOPNOTSUPP: FdNotSupported,  # a memfd with a seal the kernel does not know
    errno.EBUSY: FdAlreadyPreserved,
    errno.EEXIST: TokenInUse,
    errno.EBADF: FdInvalid,
    errno.EINVAL: SessionWrongState,
}
_RETRIEVE: Errors = {**_NOT_OURS, errno.ENOENT: TokenUnknown, errno.EINVAL: SessionWrongState}
_STATE: Errors = {**_NOT_OURS, errno.EINVAL: SessionWrongState}


def _error(what: str, error: OSError, errors: Errors) -> KernelError:
    code = error.errno or 0
    return errors.get(code, KernelError)(f"{what}: {error.strerror}", errno=code)


def preserve_error(code: int) -> KernelError:
    """Return what `Session.preserve` raises for an errno, for one that another process met."""
    return _error("cannot preserve it", OSError(code, os.strerror(code)), _PRESERVE)


def _name(name: bytes | str) -> bytes:
    # The kernel would cut at a NUL and so take another name than the one given.
    raw = name.encode() if isinstance(name, str) else name
    if not 0 < len(raw) < NAME_LENGTH or b"\0" in raw:
        raise SessionNameInvalid(f"{name!r} cannot name a session", errno=errno.EINVAL)
    return raw


def holders(path: str = DEVICE) -> list[tuple[int, str]]:
    """Return (pid, command name) of every process that has `path` open, as far as /proc shows them."""
    found: list[tuple[int, str]] = []
    for process in Path("/proc").glob("[0-9]*"):
        # A process may end, or be another user's, while it is looked at.
        with suppress(OSError):
            if any(_points_to(fd, path) for fd in (process / "fd").iterdir()):
                found.append((int(process.name), (process / "comm").read_text().strip()))
    return sorted(found)


def _points_to(link: Path, path: str) -> bool:
    try:
        return str(link.readlink()) == path
    except OSError:  # closed meanwhile
        return False


class Session:
    """One live update session; what it preserves lives as long as its descriptor.

    Closing an outgoing session discards what it preserved; closing a retrieved one finishes it.
    """

    def __init__(self, fd: OwnedFd) -> None:
        """Take over the descriptor of a session."""
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, borrowed; ValueError if the session is closed."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close the session (see the class for what that means); idempotent."""
        self._fd.close()

    def preserve(self, fd: int, token: int) -> None:
        """Have the kernel carry a file over, to be found again under `token` (u64).

        Allocates every hole of a memfd: count its blocks first, and do it where the OOM killer may strike.

        Raises:
            FdNotSupported: no handler carries this kind (ENOENT, EOPNOTSUPP).
            FdAlreadyPreserved: the file is in some session (EBUSY). TokenInUse: EEXIST. FdInvalid: EBADF.
            SessionWrongState: the session was retrieved, or the file cannot be carried as it is (EINVAL).
            KernelError: ENOMEM, ENOSPC, EFBIG, and what a handler fails with.
        """
        for _ in self.preserve_each([(fd, token)]):
            pass

    def preserve_each(self, parcels: Iterable[tuple[int, int]]) -> Iterator[int]:
        """Preserve (descriptor, token) pairs, and yield each token before its turn; errors as `preserve`.

        Nothing is done here that ten thousand of them would not need.
        """
        session = self.fileno()
        for fd, token in parcels:
            yield token
            try:
                ioctl(session, SESSION_PRESERVE_FD, _pack(_FD_TOKEN_SIZE, fd, token))
            except OSError as error:
                what = f"cannot preserve descriptor {fd} as {token}"
                raise _error(what, error, _PRESERVE) from error
            except struct.error as error:
                raise ValueError(f"{token} is not a 64-bit token") from error

    def retrieve(self, token: int) -> OwnedFd:
        """Return the file preserved under `token`; the second time a descriptor of the same open file.

        Raises:
            TokenUnknown: ENOENT. SessionWrongState: the session was not retrieved (EINVAL).
            KernelError: the handler failed; it will fail in the same way for ever.
        """
        try:
            answer = ioctl(self._fd.fileno(), SESSION_RETRIEVE_FD, _pack(_FD_TOKEN_SIZE, -1, token))
        except OSError as error:
            raise _error(f"cannot retrieve {token}", error, _RETRIEVE) from error
        except struct.error as error:
            raise ValueError(f"{token} is not a 64-bit token") from error
        return OwnedFd(FD_TOKEN.unpack(answer)[1])

    def finish(self) -> None:
        """Let the kernel go of the session's files; what was not retrieved is freed. Twice is fine.

        SessionWrongState: the session was not retrieved (EINVAL).
        """
        try:
            ioctl(self.fileno(), SESSION_FINISH, FINISH.pack(FINISH.size, 0))
        except OSError as error:
            raise _error("cannot finish the session", error, _STATE) from error

    def name(self) -> bytes:
        """Return the session's name, 1-63 bytes."""
        try:
            answer = ioctl(self.fileno(), SESSION_GET_NAME, GET_NAME.pack(GET_NAME.size, 0, b""))
        except OSError as error:
            raise _error("cannot name the session", error, _STATE) from error
        name: bytes = GET_NAME.unpack(answer)[2]
        return name.split(b"\0", 1)[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Device:
    """/dev/liveupdate, open: one process at a time."""

    def __init__(self, fd: OwnedFd) -> None:
        """Take over a descriptor of the device."""
        self._fd = fd

    @classmethod
    def open(cls, path: str = DEVICE) -> Self:
        """Return the device, open; the first open after a boot deserialises all sessions.

        Raises:
            LiveUpdateUnsupported: no such device (ENOENT, ENODEV, ENXIO). LiveUpdateDenied: EACCES, EPERM.
            LiveUpdateBusy: somebody has it open (EBUSY). LiveUpdateBroken: EIO.
        """
        try:
            return cls(open_path(path, os.O_RDWR))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise _busy(path) from error
            raise _error(f"cannot open {path}", error, _OPEN) from error

    def create_session(self, name: bytes | str) -> Session:
        """Return a new outgoing session.

        SessionExists: EEXIST. SessionNameInvalid: not 1-63 bytes without NUL. KernelError: EMFILE, ENOMEM.
        """
        return self._session(CREATE_SESSION, name, "cannot create the session", _CREATE)

    def retrieve_session(self, name: bytes | str) -> Session:
        """Return the session of that name which came from the kernel before; only once.

        SessionUnknown: ENOENT. SessionAlreadyRetrieved: EINVAL. SessionNameInvalid. KernelError: EMFILE.
        """
        return self._session(RETRIEVE_SESSION, name, "cannot retrieve the session", _FIND)

    def _session(self, request: int, name: bytes | str, what: str, errors: Errors) -> Session:
        argument = NAMED_SESSION.pack(NAMED_SESSION.size, -1, _name(name))
        try:
            answer = ioctl(self.fileno(), request, argument)
        except OSError as error:
            raise _error(f"{what} {name!r}", error, errors) from error
        return Session(OwnedFd(NAMED_SESSION.unpack(answer)[1]))

    def fileno(self) -> int:
        """Return the descriptor, borrowed; ValueError if it is closed."""
        return self._fd.fileno()

    def close(self) -> None:
        """Let others open the device; idempotent. Sessions are not touched."""
        self._fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _busy(path: str) -> LiveUpdateBusy:
    names = ", ".join(f"{comm} (pid {pid})" for pid, comm in holders(path))
    return LiveUpdateBusy(f"{path} is held by {names or 'a process not seen'}", errno=errno.EBUSY)
