"""The rules of the house that a tool cannot know."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from fdbox import errors
from fdbox.kinds import registry
from fdbox.varlink.interface import METHODS

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 500

IDL = (ROOT / "src/fdbox/varlink/io.fdbox.varlink").read_text()
NOT_KINDS = {"__init__", "base", "freight", "look", "registry"}
KINDS = [
    path
    for path in sorted((ROOT / "src/fdbox/kinds").glob("*.py"))
    if path.stem not in NOT_KINDS and not path.stem.startswith("_")
]
ERRORS = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, errors.FdboxError)
]
CHECKS = ["ruff format --check", "ruff check", "mypy", "lint-imports", "scripts/types"]


def rows(document: str) -> dict[str, list[str]]:
    """Return the table rows of docs/`document` by their first cell, without the back quotes."""
    lines = (ROOT / "docs" / document).read_text().splitlines()
    cells = [
        [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.parametrize("name", ["fdbox", "fdbox.aio"])
def test_all_lists_exactly_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    public = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and key != "annotations"
        and (key == "aio" or not isinstance(value, types.ModuleType))
    }
    assert set(module.__all__) - {"__version__"} == public
    assert len(module.__all__) == len(set(module.__all__))


def test_every_error_can_be_caught_from_the_package() -> None:
    package = importlib.import_module("fdbox")
    assert {cls.__name__ for cls in ERRORS} <= set(package.__all__)


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("attribute", ["wire_name", "exit_status"])
def test_errors_share_nothing(attribute: str) -> None:
    counted = Counter(vars(cls).get(attribute) for cls in ERRORS)
    assert None not in counted
    assert [value for value, times in counted.items() if times > 1] == []


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_has_a_row_in_the_docs(cls: type[errors.FdboxError]) -> None:
    wire_name, status, cause, remedy = rows("errors.md")[cls.__name__]
    assert wire_name == cls.wire_name
    assert int(status) == cls.exit_status
    assert cause
    assert remedy


def test_the_docs_have_no_error_that_is_not_there() -> None:
    documented = {name for name, row in rows("errors.md").items() if "." in row[0]}
    assert documented == {cls.__name__ for cls in ERRORS}


def test_the_interface_declares_every_error() -> None:
    declared = {f"io.fdbox.{name}" for name in re.findall(r"^error (\w+)\s*\(", IDL, re.MULTILINE)}
    ours = {cls.wire_name for cls in ERRORS if cls.wire_name.startswith("io.fdbox.")}
    assert declared == ours


def test_the_interface_declares_every_method() -> None:
    assert re.findall(r"^method (\w+)\s*\(", IDL, re.MULTILINE) == list(METHODS)


@pytest.mark.parametrize("path", KINDS, ids=lambda path: path.stem)
def test_every_kind_has_a_test(path: Path) -> None:
    assert (ROOT / "tests/kinds" / f"test_{path.stem}.py").exists()


@pytest.mark.parametrize("name", list(registry.CARRIED))
def test_every_carried_kind_has_a_binding(name: str) -> None:
    assert (ROOT / f"docs/formats/{registry.CARRIED[name].compatible}.yaml").exists()


def test_the_docs_say_of_every_kind_what_the_registry_says() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts/kinds", "--print"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout == (ROOT / "docs/kinds.md").read_text(), "run scripts/kinds"
    assert {name for name in rows("kinds.md") if re.fullmatch("[a-z-]+", name)} >= {
        row.name for row in registry.table()
    }


@pytest.mark.parametrize("command", CHECKS)
def test_check_runs_every_tool(command: str) -> None:
    lines = (ROOT / "scripts/check").read_text().splitlines()
    assert any(line.startswith(command) for line in lines)


def test_ci_runs_the_checks_and_the_tests() -> None:
    text = (ROOT / ".ci/run").read_text()
    assert "make check" in text
    assert "make test" in text
    assert "FDBOX_REQUIRE=root,vm" in text
