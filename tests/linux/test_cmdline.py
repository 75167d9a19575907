from __future__ import annotations

import subprocess
import sys

import pytest

SHOW = """
import sys
from fdbox.linux import cmdline
cmdline.show(sys.argv[1].split("|"))
print(open("/proc/self/cmdline", "rb").read().rstrip(b"\\0").decode(), end="")
"""


@pytest.mark.parametrize("words", ["@fdbox|serve", "x" * 500])
def test_others_see_these_words(words: str) -> None:
    command = [sys.executable, "-c", SHOW, words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == words.replace("|", "\0")


def test_what_is_longer_than_the_room_is_cut() -> None:
    show = SHOW.replace("sys.argv[1]", "('x' * 10_000)")
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert len(done.stdout) == len(f"{sys.executable}\0-c\0{show}")
