"""A kernel's command line, read as the kernel reads it (lib/cmdline.c next_arg, kernel/params.c parse_args)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fdbox.nextkernel.configuration import Configuration

_SPACES = " \t\n\v\f\r\xa0"  # isspace() of lib/ctype.c


def parameters(line: str) -> list[tuple[str, str | None]]:
    """Return the parameters in order, with their values (None: no "="); what is behind "--" is for init."""
    found: list[tuple[str, str | None]] = []
    rest = line.lstrip(_SPACES)
    while rest:
        word, rest = _word(rest)
        name, value = _split(word)
        if (name, value) == ("--", None):
            break
        found.append((name.replace("-", "_"), value))  # parameqn: they are the same
    return found


def words(line: str) -> list[str]:
    """Return the words of a line as they are written, quotes among them."""
    found: list[str] = []
    rest = line.lstrip(_SPACES)
    while rest:
        word, rest = _word(rest)
        found.append(word)
    return found


def _word(line: str) -> tuple[str, str]:
    """Return the first word, and what follows; spaces between quotes end no word."""
    quoted = False
    for at, char in enumerate(line):
        if char == '"':
            quoted = not quoted
        elif char in _SPACES and not quoted:
            return line[:at], line[at:].lstrip(_SPACES)
    return line, ""


def _split(word: str) -> tuple[str, str | None]:
    if word.startswith('"'):
        word = word[1:].removesuffix('"')
    at = word.find("=", 1)  # one at the very beginning is part of the name
    if at < 0:
        return word, None
    value = word[at + 1 :]
    return word[:at], value[1:].removesuffix('"') if value.startswith('"') else value


def switch(line: str, name: str) -> bool | None:
    """Return how a parameter of the type bool is set; None if it is not. The last one wins, one that is malformed does nothing."""
    found = None
    for key, value in parameters(line):
        if key == name and value is not None:
            said = _boolean(value)
            found = found if said is None else said
    return found


def _boolean(text: str) -> bool | None:
    """Return what kstrtobool() (lib/kstrtox.c) makes of a text: it looks at one character, or two."""
    if text[:1] in ("y", "Y", "t", "T", "1"):
        return True
    if text[:1] in ("n", "N", "f", "F", "0"):
        return False
    return {"on": True, "of": False}.get(text[:2].lower())


def effective(line: str, configuration: Configuration | None) -> str:
    """Return the command line that counts: what is built into the kernel comes first, or alone (arch/x86/kernel/setup.c)."""
    if configuration is None or not configuration.has("CMDLINE_BOOL"):
        return line
    built_in = configuration.text("CMDLINE")
    return built_in if configuration.has("CMDLINE_OVERRIDE") else f"{built_in} {line}".strip()
