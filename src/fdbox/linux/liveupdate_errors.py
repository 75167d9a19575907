"""What /dev/liveupdate can refuse, one class a reason (kernel/liveupdate/luo_*.c)."""

from __future__ import annotations

from fdbox.errors import KernelError


class LiveUpdateUnsupported(KernelError):
    """Raised when the kernel has no /dev/liveupdate, or the descriptor is not of it."""

    remedy = "boot a kernel with CONFIG_LIVEUPDATE and `kho=on liveupdate=on`"


class LiveUpdateBusy(KernelError):
    """Raised when somebody else has /dev/liveupdate open: it has one opener at a time."""

    remedy = "stop that process, or wait until it closes the device"


class LiveUpdateDenied(KernelError):
    """Raised when this process may not open /dev/liveupdate."""

    remedy = "run as root"


class LiveUpdateBroken(KernelError):
    """Raised when the kernel could not read what the one before left; it never will in this boot."""

    remedy = "what was preserved is lost: reboot without kexec; the kernels' formats differ (dmesg)"


class SessionNameInvalid(KernelError):
    """Raised when a session name is not 1-63 bytes without NUL."""

    remedy = "use 1 to 63 bytes without NUL"


class SessionExists(KernelError):
    """Raised when an outgoing session of that name is there already."""

    remedy = "use another name, or close that session"


class SessionUnknown(KernelError):
    """Raised when no session of that name came from the kernel before, or it was closed since."""

    remedy = "nothing came under this name: was the kernel loaded with kexec_file_load?"


class SessionAlreadyRetrieved(KernelError):
    """Raised when a session is retrieved a second time: its first descriptor is still open."""

    remedy = "get the descriptor from the process that retrieved it"


class SessionWrongState(KernelError):
    """Raised when an outgoing session is read, a retrieved one is written, or a handler says EINVAL."""

    remedy = "preserve goes into created sessions only, retrieve and finish into retrieved ones"


class FdNotSupported(KernelError):
    """Raised when the kernel has no handler that carries this kind of file."""

    remedy = "carry it in another way: this kernel cannot"


class FdAlreadyPreserved(KernelError):
    """Raised when the file is in a session already, or came in one that is not finished."""

    remedy = "finish or close that session first"


class FdInvalid(KernelError):
    """Raised when the descriptor to preserve is not open, or was opened with O_PATH."""

    remedy = "pass an open descriptor"


class TokenInUse(KernelError):
    """Raised when the session has a file under that token."""

    remedy = "use another token"


class TokenUnknown(KernelError):
    """Raised when the session has no file under that token."""

    remedy = "the token was not preserved in this session"
