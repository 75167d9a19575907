"""Who the peer is, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass

from fdbox.errors import BoxNotFound, PermissionDenied, UsageError

ROOT = 0
#: (uid_t)-1, which chown(2) and setresuid(2) take for "leave it as it is"
_NOBODY_AT_ALL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a connection, as the kernel noted it when it connected."""

    uid: int
    gid: int
    pid: int


def box_not_found(box: str) -> BoxNotFound:
    """Return the one error for a box that is missing and for one that is somebody else's: nobody can tell them apart."""
    return BoxNotFound(f"there is no box {box!r}", box=box)


def resolve_owner(peer: Peer, owner: int | None, box: str = "") -> int:
    """Return whose box is meant: the caller's own, or for root anybody's.

    Raises:
        BoxNotFound: another's box is named by somebody who is not root; the same error as for a missing box.
        UsageError: no user has such a number.
    """
    if owner is None:
        return peer.uid
    if peer.uid not in (owner, ROOT):
        raise box_not_found(box)
    if not 0 <= owner < _NOBODY_AT_ALL:
        raise UsageError(
            f"{owner} is no user", remedy=f"use a number from 0 to {_NOBODY_AT_ALL - 1}"
        )
    return owner


def require_operator(peer: Peer, daemon: int, what: str) -> None:
    """Let root pass, and the user as whom the daemon runs.

    Raises:
        PermissionDenied: the caller is somebody else.
    """
    if peer.uid not in (ROOT, daemon):
        raise PermissionDenied(f"{what} is for root and user {daemon}, and you are user {peer.uid}")


def require_root(peer: Peer, what: str) -> None:
    """Let root pass.

    Raises:
        PermissionDenied: the caller is not root.
    """
    if peer.uid != ROOT:
        raise PermissionDenied(f"{what} is for root, and you are user {peer.uid}")
