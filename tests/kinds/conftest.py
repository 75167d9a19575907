"""What every test of a kind gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kinds.conformance import ImageWorld, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return a carrier, a kernel and a folder; what was made in them is closed afterwards."""
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=[World, ImageWorld], ids=["kernel", "image"])
def any_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Return the same, with each carrier."""
    made: World = request.param(tmp_path)
    yield made
    made.close()
