"""Every verb, against a real daemon. What ends in another program, or in no coverage otherwise, runs in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from fdbox.cli import command, main, render
from fdbox.linux import memfd

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("daemon_process")


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - what the command said
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def fdbox(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Run:
    monkeypatch.setenv("FDBOX_SOCKET", str(socket_path))

    def run(*arguments: str) -> Done:
        status = main.run(arguments)
        out, err = capfdbinary.readouterr()
        return Done(status, out.decode(), err.decode())

    return run


def process(*arguments: str, **options: Any) -> Done:  # noqa: ANN401 - of subprocess
    line = [sys.executable, "-m", "fdbox", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False, **options)
    return Done(done.returncode, done.stdout, done.stderr)


def test_boxes(fdbox: Run) -> None:
    assert fdbox("box", "create", "a", "--json").json["state"] == "open"
    assert fdbox("box", "create", "a") == (0, "", "")
    exclusive = fdbox("box", "create", "a", "--exclusive")
    assert exclusive.status == 13
    assert "use the box that is there" in exclusive.err
    assert [box["name"] for box in fdbox("box", "list", "--json").json] == ["a"]
    assert "a " in fdbox("box", "list").out
    assert fdbox("box", "seal", "a", "--json").status in (0, 10)  # 10: no carrier here
    assert fdbox("box", "unseal", "a").status in (0, 15)
    assert fdbox("box", "delete", "a").status == 0
    missing = fdbox("box", "delete", "a", "--json")
    assert missing.status == 12
    assert json.loads(missing.err) == {
        "error": "io.fdbox.BoxNotFound",
        "box": "a",
        "message": "there is no box 'a'",
        "remedy": "`fdbox box list` shows your boxes",
    }


def test_entries(fdbox: Run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    put = fdbox("put", "web", "log", str(file))
    assert put.status == 0
    terminal = fdbox("put", "web", "terminal", "/dev/ptmx")
    assert "warning: a kernel update would lose 'terminal'" in terminal.err
    assert fdbox("rm", "web", "terminal").status == 0
    assert fdbox("put", "web", "log", str(file)).status == 17
    assert (
        fdbox("put", "web", "log", str(file), "--replace", "--json").json["kind"] == "regular-file"
    )
    assert fdbox("put", "web", "dir", str(tmp_path)).status == 0
    os.mkfifo(tmp_path / "fifo")
    assert fdbox("put", "web", "fifo", str(tmp_path / "fifo")).status == 0
    listed = fdbox("ls", "web", "--json").json
    assert [(one["name"], one["kind"]) for one in listed] == [
        ("log", "regular-file"),
        ("dir", "directory"),
        ("fifo", "fifo"),
    ]
    table = fdbox("ls", "web").out
    assert "regular-file" in table
    assert fdbox("cat", "web", "log").out == "content"
    assert fdbox("cat", "web", "log").out == "content", "its position was left alone"
    assert fdbox("cat", "web", "dir").status == 2
    assert fdbox("rm", "web", "log", "none").status == 16
    assert fdbox("rm", "web", "log", "dir").status == 0
    assert len(fdbox("ls", "web", "--json").json) == 1


def test_every_kind_is_listed(fdbox: Run) -> None:
    rows = {row["name"]: row for row in fdbox("ls", "--kinds", "--json").json}
    assert rows["memfd"]["keeps"]
    assert not rows["pidfd"]["keeps"]
    assert "no process outlives its kernel" in rows["pidfd"]["loses"]
    shown = fdbox("ls", "--kinds").out
    assert all(f"{name}: {row['about']}" in shown for name, row in rows.items())
    assert fdbox("ls", "--kinds", "web").status == 2
    assert fdbox("ls").status == 2


def test_put_of_what_cannot_be(fdbox: Run, tmp_path: Path) -> None:
    assert "No such file" in fdbox("put", "web", "x", str(tmp_path / "none")).err
    closed = fdbox("put", "web", "x", "--fd", "987654")
    assert closed.status == 30
    assert "987654 is not open" in closed.err
    assert fdbox("put", "web", "a/b", str(tmp_path)).status == 11
    assert fdbox("put", "web", "x").status == 2


def test_an_inherited_descriptor(fdbox: Run, socket_path: Path) -> None:
    with memfd.create("mine", 10) as fd:
        fdbox("put", "web", "m", "--fd", str(fd.fileno()))
    assert fdbox("ls", "web", "--json").json[0]["label"] == "mine"


def test_memory(fdbox: Run, tmp_path: Path) -> None:
    assert fdbox("memory", "cache", "index", "--size", "64K").out == "created index: 64 KiB\n"
    again = fdbox("memory", "cache", "index", "--json").json
    assert again == {"name": "index", "size": 65536, "recovered": True}
    assert fdbox("memory", "cache", "index", "--size", "1M").status == 32
    assert fdbox("memory", "cache", "none").status == 16
    source = tmp_path / "words"
    source.write_bytes(b"x" * 3_000_000)
    assert fdbox("memory", "cache", "words", "--from", str(source)).status == 0
    assert fdbox("cat", "cache", "words").out == "x" * 3_000_000
    filled = fdbox("memory", "cache", "words", "--from", str(source))
    assert filled.status == 2
    assert "was left as it is" in filled.err
    assert fdbox("memory", "cache", "small", "--size", "1K", "--from", str(source)).status == 2
    assert fdbox("memory", "cache", "x", "--from", str(tmp_path / "none")).status == 2


def test_get_gives_descriptors_as_systemd_does(
    fdbox: Run, tmp_path: Path, socket_path: Path
) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).write_text(f"content of {name}\n")
        fdbox("put", "web", name, str(tmp_path / name))
    script = "test $LISTEN_PID = $$ && echo $LISTEN_FDS $LISTEN_FDNAMES && cat <&3 && cat <&4"
    got = process("get", "web", "two", "one", "--", "sh", "-c", script)
    assert got == (0, "2 two:one\ncontent of two\ncontent of one\n", "")
    assert process("get", "web", "one", "--", "sh", "-c", "exit 42").status == 42
    assert process("get", "web", "one", "--", "/no/such/program").status == 127
    assert process("get", "web", "one", "--", str(tmp_path)).status == 126
    assert fdbox("get", "web", "one").status == 2
    assert fdbox("get", "web", "a:b", "--", "true").status == 2
    assert fdbox("get", "web", "none", "--", "true").status == 16
    assert fdbox("ls", "web", "--", "true").status == 2


def test_status(fdbox: Run) -> None:
    document = fdbox("status", "--json").json
    assert document["phase"] == "idle"
    assert document["images"] == os.environ["STATE_DIRECTORY"]
    said = fdbox("status").out
    assert "update       idle" in said
    assert "0 entries in 0 boxes" in said


def test_an_update_that_cannot_be(fdbox: Run, tmp_path: Path) -> None:
    image = tmp_path / "kernel"
    image.write_text("no kernel")
    assert fdbox("update", "--kernel", str(tmp_path / "none")).status == 2
    failed = fdbox(
        "update", "--kernel", str(image), "--initrd", str(image), "--reuse-cmdline", "--json"
    )
    assert failed.status in (39, 19)  # that is no kernel, or not root
    assert "remedy" in json.loads(failed.err.splitlines()[-1])
    assert fdbox("update", "--kernel", str(image), "--timeout", "-1").status in (2, 19)
    endless = fdbox("update", "--kernel", str(image), "--timeout", "nan")
    assert endless.status == 2
    assert "a timeout of nan s cannot be" in endless.err
    assert fdbox("abort").status in (26, 19)


def test_completion(fdbox: Run) -> None:
    for shell in ("bash", "zsh", "tcsh"):
        assert "memory" in fdbox("completion", shell).out


def test_help_teaches_every_verb(fdbox: Run) -> None:
    top = fdbox("--help")
    assert top.status == 0
    for declared in command.COMMANDS:
        assert declared.name.split()[0] in top.out
        if " " not in declared.name:
            assert f"{declared.brief} " in f"{' '.join(top.out.split())} "
            assert declared.brief.endswith("."), "a sentence, and whole"
        text = fdbox(*declared.name.split(), "--help").out
        assert "example: " in text
    assert fdbox("nonsense").status == 2
    assert "fdbox" in fdbox("--version").out


def test_the_first_sentence_of_a_summary() -> None:
    def brief(summary: str) -> str:
        return command.Command("x", summary, "", lambda _: None, lambda _: None).brief

    assert brief("Do it.") == "Do it."
    assert brief("Do it as systemd\ndoes (sd_notify(3)). It is done.") == (
        "Do it as systemd does (sd_notify(3))."
    )
    assert brief("Give 3, 4, ... and all\nthat. Then end.") == "Give 3, 4, ... and all that."


def test_nobody_there(fdbox: Run, tmp_path: Path) -> None:
    lost = fdbox("status", "--socket", str(tmp_path / "none"))
    assert lost.status == 29
    assert "start it with `fdbox serve`" in lost.err


def test_a_second_daemon_is_refused(socket_path: Path) -> None:
    second = process("serve", "--socket", str(socket_path))
    assert second.status == 2
    assert "another daemon answers" in second.err


def test_a_configuration_that_makes_no_sense(socket_path: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[quota]\nboxen = 1")
    bad = process("serve", "--socket", str(tmp_path / "io"), "--config", str(config))
    assert bad.status == 31
    assert "boxen" in bad.err


def test_the_reader_of_our_output_may_go(fdbox: Run, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * 5_000_000)
    fdbox("put", "web", "big", str(big))
    line = f"{sys.executable} -m fdbox cat web big | head -c 10"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("x" * 10, "")


@pytest.mark.root
def test_root_names_another_owner(fdbox: Run) -> None:
    fdbox("box", "create", "theirs", "--owner", "nobody")
    assert [(box["name"], box["owner"]) for box in fdbox("box", "list", "--json").json] == [
        ("theirs", 65534)
    ]
    assert "nobody" in fdbox("box", "list").out
    assert fdbox("ls", "theirs", "--owner", "65534").status == 0
    assert fdbox("ls", "theirs").status == 12
    assert fdbox("ls", "theirs", "--owner", "no such user").status == 2
    assert fdbox("box", "create", "none", "--owner", str(0xFFFFFFFF)).status == 2


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("64K", 65536), ("1.5g", 3 << 29), ("2MiB", 2 << 20), ("1TB", 1 << 40)],
)
def test_sizes(text: str, count: int) -> None:
    assert command.size(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1", "K", "1X", "nan", "1e30"])
def test_what_is_no_size(fdbox: Run, text: str) -> None:
    assert fdbox("memory", "cache", "m", f"--size={text}").status == 2


def test_names_of_others_cannot_drive_the_terminal() -> None:
    assert render.table(["A"], [["\x1b[2J"]]) == "A\n?[2J"
    assert render.size(None) == "-"
    assert render.size(1536) == "1.5 KiB"
    assert render.size(1 << 60) == "1024.0 PiB"
