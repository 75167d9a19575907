"""The daemon's configuration: a TOML file, where every setting has a default and an unknown one is an error."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec

from fdbox.errors import ConfigurationError
from fdbox.linux import regular

SYSTEM_PATH = Path("/etc/fdbox/config.toml")
SYSTEM_IMAGES = Path("/var/lib/fdbox")
#: with every setting it has a few hundred bytes
_LARGEST = 1 << 20


class QuotaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[quota]: what one user may hold."""

    boxes: int = 64
    entries: int = 16384
    descriptors: int = 16384


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[server]: connections a user, and the seconds that half a message may take."""

    connections_per_user: int = 256
    idle_timeout: float = 30.0


class UpdateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[update]: the seconds that subscribers have to become ready, unless the one who begins says otherwise."""

    timeout: float = 60.0


class ImageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[image]: where sealed boxes are written that no kernel carries; empty: in the place of such things."""

    directory: str = ""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    quota: QuotaSettings = QuotaSettings()
    server: ServerSettings = ServerSettings()
    update: UpdateSettings = UpdateSettings()
    image: ImageSettings = ImageSettings()


def default_path() -> Path:
    """Return where the file is looked for: of the machine as root, else of the user; ConfigurationError if that has no home."""
    if os.geteuid() == 0:
        return SYSTEM_PATH
    home = os.environ.get("XDG_CONFIG_HOME") or _home() / ".config"
    return Path(home) / "fdbox" / "config.toml"


def image_directory(settings: ImageSettings) -> Path:
    """Return where images go: as configured, else where systemd says (StateDirectory=), else of the machine or the user.

    ConfigurationError if that has no home.
    """
    if settings.directory:
        return Path(settings.directory)
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    if os.geteuid() == 0:
        return SYSTEM_IMAGES
    return Path(os.environ.get("XDG_STATE_HOME") or _home() / ".local/state") / "fdbox"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:  # in a container a user often has a number and no more
        raise ConfigurationError(
            f"user {os.geteuid()} has no home",
            remedy="set HOME, or XDG_CONFIG_HOME and XDG_STATE_HOME",
        ) from error


def load(path: Path | None) -> Config:
    """Return the configuration in `path`; with None the one in the default place, or the defaults if there is none.

    Raises:
        ConfigurationError: the file cannot be read, is no TOML, or has a setting that is not known or makes no sense.
    """
    wanted = path or default_path()
    try:
        text = regular.read(wanted, _LARGEST).decode()
    except FileNotFoundError:
        if path is None:
            return Config()
        raise ConfigurationError(
            f"there is no {path}", remedy="create it, or leave it out"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {wanted}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{wanted} is no text: {error}") from error
    return parse(text, str(wanted))


def parse(text: str, origin: str) -> Config:
    """Return the configuration in a TOML text; `origin` names it in errors."""
    try:
        config = msgspec.convert(tomllib.loads(text), Config)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{origin}: {error}") from error
    for section in (config.quota, config.server, config.update):
        for name in section.__struct_fields__:
            if not getattr(section, name) > 0:
                raise ConfigurationError(f"{origin}: {name} must be more than 0")
    if config.image.directory and not Path(config.image.directory).is_absolute():
        raise ConfigurationError(f"{origin}: [image] directory must be an absolute path")
    return config
