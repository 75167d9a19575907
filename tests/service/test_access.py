from __future__ import annotations

import pytest

from fdbox.errors import BoxNotFound, PermissionDenied, UsageError
from fdbox.service.access import Peer, box_not_found, require_operator, require_root, resolve_owner

ROOT, ANNA = Peer(0, 0, 1), Peer(1000, 1000, 2)


def test_whose_box() -> None:
    assert resolve_owner(ANNA, None) == 1000
    assert resolve_owner(ANNA, 1000) == 1000
    assert resolve_owner(ROOT, None) == 0
    assert resolve_owner(ROOT, 1000) == 1000


def test_anothers_box_looks_like_a_missing_one() -> None:
    with pytest.raises(BoxNotFound) as caught:
        resolve_owner(ANNA, 1001, "b")
    assert caught.value.parameters() == box_not_found("b").parameters()


@pytest.mark.parametrize("owner", [-1, 0xFFFFFFFF, 1 << 40])
def test_what_is_no_user(owner: int) -> None:
    with pytest.raises(UsageError, match=f"{owner} is no user"):
        resolve_owner(ROOT, owner)
    with pytest.raises(BoxNotFound):
        resolve_owner(ANNA, owner)
    assert resolve_owner(ROOT, 0xFFFFFFFE) == 0xFFFFFFFE


def test_root_only() -> None:
    require_root(ROOT, "an update")
    with pytest.raises(PermissionDenied):
        require_root(ANNA, "an update")


def test_the_operator() -> None:
    for peer in (ROOT, ANNA):
        require_operator(peer, 1000, "replacing the daemon")
    with pytest.raises(PermissionDenied, match="for root and user 1001"):
        require_operator(ANNA, 1001, "replacing the daemon")
