"""The daemon, as a client that nobody here wrote sees it: systemd's varlinkctl, which knows descriptors from 258 on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.vm import debian

from fdbox.varlink import dispatch, interface

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.usefixtures("daemon_process")]

IDL = Path(dispatch.__file__).with_name("io.fdbox.varlink")


@pytest.fixture(scope="session")
def varlinkctl() -> list[str]:
    return debian.command(debian.unpacked("systemd", "sid"), "usr/bin/varlinkctl")


def run(command: list[str], *arguments: str) -> str:
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(
    varlinkctl: list[str], socket: Path, method: str, parameters: object, *options: str
) -> dict[str, object]:
    out = run(
        varlinkctl,
        "call",
        "--json=short",
        *options,
        f"unix:{socket}",
        f"io.fdbox.{method}",
        json.dumps(parameters),
    )
    answer: dict[str, object] = json.loads(out)
    return answer


def test_it_is_new_enough(varlinkctl: list[str]) -> None:
    assert int(run(varlinkctl, "--version").split()[1].split("~")[0].split(".")[0]) >= 258


def test_the_interface_is_valid_and_is_what_the_daemon_tells(
    varlinkctl: list[str], socket_path: Path
) -> None:
    run(varlinkctl, "validate-idl", str(IDL))
    told = run(varlinkctl, "introspect", f"unix:{socket_path}", "io.fdbox")
    assert {
        line.split("(")[0].split()[1] for line in told.splitlines() if line.startswith("method")
    } == {*interface.METHODS}
    assert "io.fdbox" in run(varlinkctl, "info", f"unix:{socket_path}")
    assert "org.varlink.service" in run(varlinkctl, "list-interfaces", f"unix:{socket_path}")


def test_a_descriptor_goes_in_by_push_fd_and_out_by_exec(
    varlinkctl: list[str], socket_path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("what is behind the descriptor")
    box = {"box": "web"}
    assert call(varlinkctl, socket_path, "CreateBox", box)["created"] is True
    entry = {"name": "log", "fileDescriptor": 0}
    put = call(varlinkctl, socket_path, "Put", {**box, "entries": [entry]}, f"--push-fd={file}")
    assert put["entries"][0]["kind"] == "regular-file"  # type: ignore[index]
    file.unlink()
    said = run(
        varlinkctl,
        "call",
        "--exec",
        f"unix:{socket_path}",
        "io.fdbox.Get",
        json.dumps({**box, "names": ["log"]}),
        "--",
        "sh",
        "-c",
        "test $LISTEN_FDS = 1 && cat <&3",
    )
    assert "what is behind the descriptor" in said


def test_an_error_reaches_it_by_name(varlinkctl: list[str], socket_path: Path) -> None:
    done = subprocess.run(
        [*varlinkctl, "call", f"unix:{socket_path}", "io.fdbox.ListEntries", '{"box":"none"}'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "io.fdbox.BoxNotFound" in done.stderr


def test_a_stream_of_replies_reaches_it(varlinkctl: list[str], socket_path: Path) -> None:
    command = [
        *varlinkctl,
        "call",
        "--more",
        "--json=short",
        f"unix:{socket_path}",
        "io.fdbox.Subscribe",
    ]
    with subprocess.Popen(
        [*command, '{"name":"ctl"}'], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.kill()
    assert '"event":"subscribed"' in first
