from __future__ import annotations

import os

import pytest

from fdbox.keeper import protocol

OURS = {"NOTIFY_SOCKET": "/n", "FDSTORE": "18000", "FDBOX_KEEPER": "1"}
SYSTEMDS = {"NOTIFY_SOCKET": "/n", "FDSTORE": "512", "SYSTEMD_EXEC_PID": str(os.getpid())}


@pytest.mark.parametrize("environment", [OURS, SYSTEMDS])
def test_who_has_a_keeper(environment: dict[str, str]) -> None:
    assert protocol.is_kept(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**OURS, "FDSTORE": "0"},
        {**OURS, "FDSTORE": "many"},
        {key: value for key, value in OURS.items() if key != "NOTIFY_SOCKET"},
        {**SYSTEMDS, "SYSTEMD_EXEC_PID": "1"},
        {key: value for key, value in SYSTEMDS.items() if key != "SYSTEMD_EXEC_PID"},
    ],
)
def test_who_has_none(environment: dict[str, str]) -> None:
    """The last two have inherited an environment that was meant for another process."""
    assert not protocol.is_kept(environment)


@pytest.mark.parametrize(
    ("told", "room", "entries"),
    [("18000", 18000, 16384), ("99999", 18000, 16384), ("100", 100, 75)],
)
def test_what_it_takes(told: str, room: int, entries: int) -> None:
    assert protocol.room({"FDSTORE": told}) == room
    assert protocol.room_for_entries({"FDSTORE": told}) == entries
