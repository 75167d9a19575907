from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.carrier import SECOND, FakeKernel
from tests.handover.home import Home
from tests.vm import powercut
from tests.vm.machine import Machine
from tests.vm.scripts import cut_images, cut_writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.vm.powercut import Recording

pytestmark = [pytest.mark.vm, pytest.mark.slow]

SCRIPTS = Path(__file__).with_name("scripts")
#: disks for each point of a cut; cuts at least; kills
TIMES, LEAST, KILLS = 2, 50, 2
#: nothing but images carries there
IMAGES = Machine(deadline=600, append="kho=off")


def verdicts(recording: Recording, see: Callable[[Path], str]) -> list[str]:
    """Return what is wrong with each disk: nothing, or which state was said to be safe, and what is there instead."""
    found = []
    for cut in recording.cuts(TIMES, random.Random(5)):
        with powercut.mounted(cut.disk) as folder:
            found.append(verdict(cut.marks[-1], folder, see))
    print(f"{len(found)} cuts of {len(recording.entries)} requests, {found.count('')} good")
    assert len(found) >= LEAST
    return found


def verdict(marked: str, folder: Path, see: Callable[[Path], str]) -> str:
    """Return what is wrong if there is neither the last state that was marked, nor the whole next one."""
    try:
        seen = see(folder)
    except AssertionError as error:
        return f"after {marked} a half: {error}"
    return "" if seen in (marked, str(int(marked) + 1)) else f"after {marked} there is {seen}"


def see_files(folder: Path) -> str:
    return cut_writer.see(folder / "versions")


def see_images(folder: Path) -> str:
    """Let the boxes arrive, as in the next kernel, and return which state that is."""
    home = Home(folder / "fdbox", FakeKernel(SECOND))
    try:
        came, lost = home.arrive()
    finally:
        home.end()
    assert not lost, lost
    for number in range(len(cut_images.STATES)):
        if came == cut_images.expected(number):
            return str(number)
    raise AssertionError(f"there is {sorted(came)}")


def test_a_writer_without_fsync_is_found_wrong(tmp_path: Path) -> None:
    machine = Machine(environment={"WRITER": "hasty"})
    found = verdicts(powercut.record(machine, SCRIPTS / "cut_writer.py", tmp_path), see_files)
    assert any("a half" in one for one in found), found
    assert any("there is" in one for one in found), found


def test_images_are_whole_after_a_cut_at_any_point(tmp_path: Path) -> None:
    recording = powercut.record(IMAGES, SCRIPTS / "cut_images.py", tmp_path, jumps=True)
    assert list(recording.marks) == [str(number) for number in range(len(cut_images.STATES) - 1)]
    found = verdicts(recording, see_images)
    assert set(found) == {""}, [one for one in found if one]
    with powercut.mounted(recording.end(tmp_path / "end")) as folder:
        assert see_images(folder) == str(len(cut_images.STATES) - 1)


@pytest.mark.parametrize("kill", range(KILLS))
def test_images_are_whole_after_the_machine_was_killed(kill: int, tmp_path: Path) -> None:
    disk, when = tmp_path / "disk", powercut.some_time_after(str(kill), 3.0, random.Random(kill))
    marked = powercut.kill(IMAGES, SCRIPTS / "cut_images.py", disk, when)
    with powercut.mounted(disk) as folder:
        assert verdict(marked[-1], folder, see_images) == ""
