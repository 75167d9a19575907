from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fdbox.errors import ConfigurationError
from fdbox.service import config

if TYPE_CHECKING:
    from pathlib import Path


def test_without_a_file_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SYSTEM_PATH", tmp_path / "none.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.load(None) == config.Config()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert config.default_path() == tmp_path / "fdbox" / "config.toml"


def test_every_setting_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        "[quota]\nboxes = 1\nentries = 2\ndescriptors = 3\n"
        "[server]\nidle_timeout = 4\nconnections_per_user = 5\n[update]\ntimeout = 6.5\n"
    )
    assert config.load(path) == config.Config(
        config.QuotaSettings(1, 2, 3), config.ServerSettings(5, 4.0), config.UpdateSettings(6.5)
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[quota]\nboxen = 1", "boxen"),
        ("[other]", "other"),
        ("[quota]\nboxes = 'many'", r"quota\.boxes"),
        ("[quota]\nboxes = 0", "boxes must be more than 0"),
        ("[update]\ntimeout = -1", "timeout must be more than 0"),
        ("not toml", "config.toml"),
    ],
)
def test_what_makes_no_sense_is_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=named):
        config.load(path)


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no .*gone\.toml"):
        config.load(tmp_path / "gone.toml")
    with pytest.raises(ConfigurationError, match="cannot read"):
        config.load(tmp_path)
