from __future__ import annotations

import pytest

from fdbox.handover import cost
from fdbox.handover.cost import predict
from fdbox.linux.layout import Layout

TURN = 1e-7


def test_nothing_costs_nothing() -> None:
    assert predict(Layout(), TURN) == (0, 0, 0)


def test_boot_costs_by_the_product_of_all_together() -> None:
    one, two = Layout(1000, 0, 1000), Layout(3000, 0, 3000)
    apart = predict(one, TURN).boot + predict(two, TURN).boot
    together = predict(one.plus(two), TURN).boot
    assert together == pytest.approx(16 * predict(one, TURN).boot)
    assert together > apart


def test_a_huge_page_is_retrieved_like_a_small_one() -> None:
    small, huge = Layout(512, 0, 1), Layout(512, 1, 1)
    assert predict(small, TURN).retrieve == pytest.approx(512 * predict(huge, TURN).retrieve)


def test_what_has_to_be_moved_away_costs_by_the_page() -> None:
    here, away = Layout(512, 1, 1), Layout(512, 1, 1, movable=512)
    assert predict(away, TURN).preserve > 100 * predict(here, TURN).preserve


def test_where_runs_are_hidden_the_worst_is_taken() -> None:
    assert predict(Layout(1024, 1, None), TURN).boot == predict(Layout(1024, 1, 513), TURN).boot
    assert Layout(1, 0, None).plus(Layout(1, 0, 1)).runs is None


def test_a_slower_machine_takes_longer() -> None:
    lies = Layout(1000, 0, 1000)
    fast, slow = predict(lies, TURN), predict(lies, 10 * TURN)
    assert slow.blackout == pytest.approx(10 * fast.blackout)


def test_a_turn_is_the_quickest_try() -> None:
    times = iter([0.0, 5.0, 5.0, 6.0, 6.0, 9.0, 9.0, 12.0, 12.0, 20.0])
    assert cost.turn_seconds(times.__next__) == pytest.approx(1.0 / 200_000)
    assert 1e-9 < cost.turn_seconds() < 1e-4
