"""Each case was taken from next_arg() and kstrtobool() of the kernel, not from what this code does."""

from __future__ import annotations

import pytest

from fdbox.nextkernel.command_line import effective, parameters, switch
from fdbox.nextkernel.configuration import Configuration


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("  quiet \t kho=on\n", [("quiet", None), ("kho", "on")]),
        ("a=b=c", [("a", "b=c")]),
        ("a=", [("a", "")]),
        ("=a", [("=a", None)]),
        ("a-b-c=d-e", [("a_b_c", "d-e")]),
        ('a="b c" d', [("a", "b c"), ("d", None)]),
        ('"a=b c" d', [("a", "b c"), ("d", None)]),
        ('a=b" "c', [("a", 'b" "c')]),
        ('a="b', [("a", "b")]),
        ('"a" b', [("a", None), ("b", None)]),
        ("a -- kho=on", [("a", None)]),
        ("a --x kho=on", [("a", None), ("__x", None), ("kho", "on")]),
        ("-- a", []),
        ('"--" a', []),
        ("--= a", [("__", ""), ("a", None)]),
        ("a\xa0b", [("a", None), ("b", None)]),
    ],
)
def test_parameters(line: str, expected: list[tuple[str, str | None]]) -> None:
    assert parameters(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", None),
        ("kho", None),  # no value: malformed
        ("kho=", None),
        ("kho=maybe", None),
        ("kho=on", True),
        ("kho=ON", True),
        ("kho=1", True),
        ("kho=yes", True),
        ("kho=True", True),
        ("kho=off", False),
        ("kho=oFf", False),
        ("kho=0", False),
        ("kho=no", False),
        ("kho=false", False),
        ("kho=o", None),
        ('kho="off"', False),
        ("kho=on kho=off", False),
        ("kho=off kho=on", True),
        ("kho=off kho=nonsense", False),
        ("kho=off kho=garbage", False),
        ("kho=off kho=maybe kho", False),
        ("kho=on -- kho=off", True),
        ("x.kho=on akho=on khox=on", None),
        ('console="a kho=on"', None),
    ],
)
def test_switch(line: str, expected: bool | None) -> None:
    assert switch(line, "kho") is expected


def test_what_is_built_in() -> None:
    def built_in(**options: str) -> Configuration:
        return Configuration("here", options)

    line = "kho=on"
    assert effective(line, None) == line
    assert effective(line, built_in(CMDLINE='"kho=off"')) == line
    own = built_in(CMDLINE_BOOL="y", CMDLINE='"kho=off x=\\"a b\\""')
    assert effective(line, own) == 'kho=off x="a b" kho=on'
    assert effective("", own) == 'kho=off x="a b"'
    alone = built_in(CMDLINE_BOOL="y", CMDLINE_OVERRIDE="y", CMDLINE='"kho=off"')
    assert effective(line, alone) == "kho=off"
