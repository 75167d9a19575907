from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.handover.home import Home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "images")
    yield made
    made.end()


# --- the file --------------------------------------------------------------------------------------------------------
