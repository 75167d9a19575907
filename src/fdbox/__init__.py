"""fdbox keeps alive what stands behind a file descriptor: while a process, fdbox or the kernel is replaced."""

from __future__ import annotations

from importlib import metadata

from fdbox import aio
from fdbox.client.box import Box
from fdbox.client.memory import Memory
from fdbox.client.sync import Client, connect
from fdbox.errors import (
    BoxExists,
    BoxNotFound,
    BoxNotSealed,
    BoxSealed,
    CannotCarry,
    ConfigurationError,
    ConnectionLost,
    EntryExists,
    EntryNotFound,
    FdboxError,
    FdtError,
    InvalidDescriptor,
    InvalidName,
    InvalidParameter,
    JournalUnreadable,
    KeeperGone,
    KernelError,
    KernelImageInvalid,
    LateWrite,
    ManifestInvalid,
    MethodNotFound,
    NextKernelUnfit,
    NoRoom,
    NoUpdate,
    PermissionDenied,
    ProtocolError,
    QuotaExceeded,
    RehearsalFailed,
    SameIncarnation,
    SizeMismatch,
    UpdateAborted,
    UpdateInProgress,
    UpgradeRefused,
    UsageError,
)
from fdbox.linux.fd import OwnedFd

__version__: str
try:
    __version__ = metadata.version("fdbox")
except metadata.PackageNotFoundError:  # run from a checkout
    __version__ = "0"

__all__ = [
    "Box",
    "BoxExists",
    "BoxNotFound",
    "BoxNotSealed",
    "BoxSealed",
    "CannotCarry",
    "Client",
    "ConfigurationError",
    "ConnectionLost",
    "EntryExists",
    "EntryNotFound",
    "FdboxError",
    "FdtError",
    "InvalidDescriptor",
    "InvalidName",
    "InvalidParameter",
    "JournalUnreadable",
    "KeeperGone",
    "KernelError",
    "KernelImageInvalid",
    "LateWrite",
    "ManifestInvalid",
    "Memory",
    "MethodNotFound",
    "NextKernelUnfit",
    "NoRoom",
    "NoUpdate",
    "OwnedFd",
    "PermissionDenied",
    "ProtocolError",
    "QuotaExceeded",
    "RehearsalFailed",
    "SameIncarnation",
    "SizeMismatch",
    "UpdateAborted",
    "UpdateInProgress",
    "UpgradeRefused",
    "UsageError",
    "__version__",
    "aio",
    "connect",
]
