"""The running daemon replaced by the code on disk, its keeper too, under load; and versions that are not the same."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fdbox
from fdbox.linux import memfd
from tests.processes import Faulty, Serving, serve, service_of
from tests.service.test_kill import CLIENTS, Load, check_loads, under_load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = 25
SOURCE = Path(fdbox.__file__).parent


def test_no_call_is_refused_and_nothing_is_lost_under_load() -> None:
    serving = Serving()
    service, keeper = service_of(serving.keeper), serving.keeper
    loads = [Load(serving.socket, number) for number in range(CLIENTS)]
    with under_load(loads):
        for _ in range(ROUNDS):
            time.sleep(0.1)
            serving.reexec()
    check_loads(loads)
    print(
        f"{ROUNDS} times reexec, {sum(load.operations for load in loads)} operations, "
        f"{sum(load.reconnects for load in loads)} errors, "
        f"longest gap {max(load.longest_gap for load in loads):.2f} s"
    )
    assert sum(load.reconnects for load in loads) == 0
    assert (service_of(serving.keeper), serving.keeper) == (service, keeper), "replaced in place"
    serving.stop()


class Code:
    """A copy of fdbox's code that a test may change, and a daemon that runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(SOURCE, folder / "fdbox")

    def change(self, file: str, pattern: str, text: str) -> None:
        path = self.folder / "fdbox" / file
        changed, count = re.subn(pattern, text, path.read_text())
        assert count == 1
        path.write_text(changed)

    def be_next_version(self) -> None:
        """Have a service that calls itself 9.9, and a keeper with a protocol of its own time."""
        self.change(
            "service/daemon.py", r'version = metadata.version\("fdbox"\)', 'version = "9.9"'
        )
        self.change("keeper/protocol.py", r"VERSION = 1", "VERSION = 2")

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.folder)}


@pytest.fixture
def code(tmp_path: Path) -> Code:
    return Code(tmp_path / "code")


@pytest.fixture
def serving(code: Code) -> Iterator[Serving]:
    made = Serving(env=code.environment())
    yield made
    made.stop()


def version(serving: Serving) -> str:
    with fdbox.connect(serving.socket) as client:
        return client.status().version


def keeper_told(serving: Serving) -> str:
    """Return the version that the keeper stated to the service that answers."""
    assert serving.answers()
    content = Path(f"/proc/{service_of(serving.keeper)}/environ").read_text()
    return dict(line.split("=", 1) for line in content.split("\0") if line)["FDBOX_KEEPER"]


def entries(serving: Serving) -> list[str]:
    with fdbox.connect(serving.socket) as client:
        return [entry.name for entry in client.existing_box("b").list()]


def put(serving: Serving, name: str) -> None:
    with fdbox.connect(serving.socket) as client, memfd.create(f"v-{name}") as fd:
        client.box("b").put(name, fd)


def test_new_code_takes_over_from_service_and_keeper(code: Code, serving: Serving) -> None:
    put(serving, "before")
    code.be_next_version()
    assert version(serving) != "9.9"
    serving.reexec()
    assert version(serving) == "9.9"
    put(serving, "after")
    serving.kill_service()
    assert keeper_told(serving) == "2", "the keeper is the new one, too"
    assert entries(serving) == ["before", "after"]
    assert len([link for link in serving.held() if "memfd:v-" in link]) == 2


def test_sighup_does_the_same(code: Code, serving: Serving) -> None:
    put(serving, "before")
    code.be_next_version()
    os.kill(serving.keeper, 1)
    serving.until(lambda: version(serving) == "9.9")
    assert entries(serving) == ["before"]


def test_an_old_keeper_with_a_new_service(code: Code, serving: Serving) -> None:
    put(serving, "before")
    code.be_next_version()
    serving.kill_service()
    assert (version(serving), keeper_told(serving)) == ("9.9", "1")
    put(serving, "after")
    serving.kill_service()
    assert entries(serving) == ["before", "after"]
    serving.reexec()
    put(serving, "last")
    serving.kill_service()
    assert keeper_told(serving) == "2"
    assert entries(serving) == ["before", "after", "last"]


def test_a_new_keeper_with_an_old_service(code: Code) -> None:
    """The keeper's code is the changed copy; what it starts is ours."""
    code.be_next_version()

    def command(folder: Path) -> list[str]:
        program = (
            f"import sys; sys.path.insert(0, {str(code.folder)!r}); from fdbox.keeper import process;"
            f"sys.exit(process.run({serve(folder)!r}))"
        )
        return [sys.executable, "-c", program]

    serving = Serving(command)
    put(serving, "before")
    assert keeper_told(serving) == "2"
    serving.kill_service()
    assert version(serving) != "9.9"
    assert entries(serving) == ["before"]
    serving.reexec()
    put(serving, "after")
    serving.kill_service()
    assert entries(serving) == ["before", "after"]
    serving.stop()


def test_code_that_does_not_start_is_refused(code: Code, serving: Serving) -> None:
    put(serving, "before")
    code.change("service/vault.py", r"\A", "this is no Python\n")
    with fdbox.connect(serving.socket) as client:
        with pytest.raises(fdbox.UpgradeRefused, match="does not start: SyntaxError"):
            client.reexec()
        assert client.status().phase == "idle"
        os.kill(serving.keeper, 1)
        serving.until(lambda: "going on as it is" in serving.log())
    put(serving, "after")
    assert entries(serving) == ["before", "after"]


def test_a_configuration_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.touch()
    serving = Serving(lambda folder: [*serve(folder), "--config", str(config)])
    config.write_text("[quota]\nboxen = 1")
    with (
        fdbox.connect(serving.socket) as client,
        pytest.raises(fdbox.UpgradeRefused, match="boxen"),
    ):
        client.reexec()
    config.write_text("")
    serving.reexec()
    serving.stop()


def test_a_journal_of_the_future_is_kept_for_who_can_read_it(code: Code, serving: Serving) -> None:
    put(serving, "before")
    code.change("service/journal.py", r"VERSION = 1", "VERSION = 2")
    serving.kill_service()
    assert entries(serving) == ["before"]
    code.change("service/journal.py", r"VERSION = 2", "VERSION = 1")
    os.kill(service_of(serving.keeper), 9)
    serving.until(lambda: serving.log().count("written down by a newer fdbox, in version 2") >= 2)
    code.change("service/journal.py", r"VERSION = 1", "VERSION = 2")
    assert entries(serving) == ["before"], "it was waited for"


def test_a_full_house_is_handed_over() -> None:
    """With as many descriptors as there is room for: nothing on the way takes more than two numbers for each."""
    serving = Serving(lambda folder: ["prlimit", "--nofile=1200:1200", *serve(folder)])
    with fdbox.connect(serving.socket) as client:
        box = client.box("b")
        count = 0
        with pytest.raises(fdbox.QuotaExceeded):
            while True:
                put(serving, f"{count}")
                count += 1
        assert count == 450
        for again in (serving.reexec, serving.kill_service, serving.reexec, serving.reexec):
            again()
            assert len(box.list()) == count
        assert serving.log().count("starting it again") == 1
    serving.stop()


def test_the_command(serving: Serving) -> None:
    line = [sys.executable, "-m", "fdbox", "reexec", "--socket", str(serving.socket)]
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, check=True)
    assert done.stdout == f'{{"version": "{fdbox.__version__}"}}\n'
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == f"fdbox {fdbox.__version__} has taken over\n"


@pytest.mark.root
def test_only_root_and_its_own_user_may(serving: Serving) -> None:
    serving.folder.chmod(0o755)
    program = f"fdbox.connect({str(serving.socket)!r}).reexec()"
    done = subprocess.run(
        [sys.executable, "-c", f"import fdbox, os; os.setuid(65534); {program}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionDenied: replacing the daemon is for root" in done.stderr


def test_nothing_is_taken_from_the_folder_where_it_is_started(tmp_path: Path) -> None:
    (tmp_path / "fdbox.py").write_text("raise SystemExit('a stranger')")
    fdbox_command = Path(sys.executable).with_name("fdbox")
    serving = Serving(
        lambda folder: [str(fdbox_command), "serve", "--socket", str(folder / "io.fdbox")],
        cwd=tmp_path,
    )
    serving.kill_service()
    serving.reexec()
    serving.stop()


# --- who waits for updates -------------------------------------------------------------------------------------------


def follow_update(faulty: Faulty, ended: Callable[[str], None]) -> threading.Thread:
    def run() -> None:
        with fdbox.connect(faulty.socket) as client, memfd.create("image") as image:
            try:
                list(client.update(image, None, ""))
            except fdbox.FdboxError as error:
                ended(type(error).__name__)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.root
def test_a_subscriber_goes_on_to_hear_and_hears_that_an_update_died() -> None:
    faulty = Faulty()
    outcomes: list[str] = []
    with fdbox.connect(faulty.socket) as client, client.subscribe("program") as subscription:
        events = iter(subscription)
        faulty.kill_service()
        first = follow_update(faulty, outcomes.append)
        assert next(events).event == "prepare"
        faulty.kill_service()  # in the middle of it
        assert next(events).event == "aborted"
        first.join()
        second = follow_update(faulty, outcomes.append)
        assert next(events).event == "prepare"
        subscription.ready()
        assert next(events).event == "aborted"
        second.join()
    assert outcomes == ["ConnectionLost", "KernelError"]
    faulty.stop()


@pytest.mark.root
def test_a_subscriber_with_asyncio_does_too() -> None:
    faulty = Faulty()
    outcomes: list[str] = []

    async def listen() -> None:
        async with await fdbox.aio.connect(faulty.socket) as client:
            subscription = await client.subscribe("program")
            events = aiter(subscription)
            await asyncio.to_thread(faulty.kill_service)
            update = follow_update(faulty, outcomes.append)
            assert (await anext(events)).event == "prepare"
            await asyncio.to_thread(faulty.kill_service)
            assert (await anext(events)).event == "aborted"
            await asyncio.to_thread(update.join)
            subscription.close()
            with pytest.raises(fdbox.ConnectionLost):
                await anext(events)

    asyncio.run(listen())
    assert outcomes == ["ConnectionLost"]
    faulty.stop()
