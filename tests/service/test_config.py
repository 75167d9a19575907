from __future__ import annotations

import os
from pathlib import Path

import pytest

from fdbox.errors import ConfigurationError
from fdbox.service import config


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
    with pytest.raises(ConfigurationError, match=r"cannot read .*: it is a directory"):
        config.load(tmp_path)


@pytest.mark.timeout(20)
def test_what_would_never_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match=r"cannot read .*fifo: it is a FIFO"):
        config.load(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match="cannot read /dev/zero: it is a device"):
        config.load(Path("/dev/zero"))


def test_what_is_no_configuration_at_all(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigurationError, match="it has more than 1048576 bytes"):
        config.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"config\.toml is no text"):
        config.load(path)
