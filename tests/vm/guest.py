"""What runs in the machine, in each of its kernels: the same program, which does what is next in the job.

If the job names an init, this program first becomes that, and is then run by it as a service.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any

SHARE = Path("/run/vm")
FDBOX_TIMEOUT = 60.0


def record(name: str, status: int, output: str) -> None:
    """Write a step's result, whole or not at all, and what the init's daemon has said so far."""
    for log in Path("/run").glob("daemon-*.log"):
        shutil.copy(log, SHARE)
    fresh = SHARE / f"{name}.new"
    fresh.write_text(json.dumps({"status": status, "output": output}))
    fresh.rename(SHARE / f"{name}.json")


class Guest:
    """The job, in this kernel."""

    def __init__(self, job: dict[str, Any]) -> None:
        """Read the job; prepare the environment of scripts."""
        self.job = job
        self.environment = {
            "PATH": f"{job['bin']}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "PYTHONPATH": f"{job['project']}/src:{job['project']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "FDBOX_NOTES": str(SHARE / "notes"),
            **job["environment"],
        }
        configuration = Path("/etc/fdbox/config.toml")
        configuration.parent.mkdir(exist_ok=True)
        configuration.write_text(job["configuration"])

    def step(self, name: str, command: list[str]) -> bool:
        """Run a command to its end, record it, and return whether it did well."""
        output = SHARE / f"{name}.out"  # there, so that it is seen even if the machine is lost
        with output.open("wb") as out:
            done = subprocess.run(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd="/tmp",
                check=False,
            )
        record(name, done.returncode, output.read_text(errors="replace"))
        return done.returncode == 0

    def serve(self, when: str) -> None:
        """Start the daemon, unless the init does, and wait until it answers."""
        daemon = None if self.job["init"] else self.start_daemon(when)
        end = time.monotonic() + FDBOX_TIMEOUT
        while not Path("/run/fdbox/io.fdbox").exists():
            if (daemon and daemon.poll() is not None) or time.monotonic() > end:
                raise TimeoutError("the daemon did not start")
            time.sleep(0.05)

    def start_daemon(self, when: str) -> subprocess.Popen[bytes]:
        """Return the daemon as a child of this process."""
        with (SHARE / f"daemon-{when}.log").open("wb") as log:
            return subprocess.Popen(self.job["serve"], env=self.environment, stdout=log, stderr=log)

    def first_kernel(self) -> None:
        """Run what comes before the jump, and jump."""
        scripts = self.job["scripts"]
        if "boot" in scripts:
            self.step("boot", [scripts["boot"]])
            return
        self.serve("before")
        if not self.step("before", [scripts["before"]]):
            return
        (SHARE / "jumped").touch()
        os.sync()
        images = ["--kernel", str(SHARE / "next-kernel"), "--initrd", str(SHARE / "next-initrd")]
        jump = [self.job["jump"]] if self.job["jump"] else ["fdbox", "update", *self.job["options"]]
        self.step("update", [*jump, *images, "--append", self.job["command_line"]])

    def next_kernel(self) -> None:
        """Run what comes after it."""
        record("update", 0, "")
        self.serve("after")
        self.step("after", [self.job["scripts"]["after"]])


def power_off() -> None:
    """End the machine."""
    os.sync()
    ctypes.CDLL(None).reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF


def main() -> None:
    """Do what is next, and end the machine whatever happens."""
    jumped = (SHARE / "jumped").exists()
    try:
        if os.getpid() == 1:
            with (SHARE / "kernels").open("a") as kernels:
                kernels.write(f"{os.uname().release}\n")
        job = json.loads((SHARE / "job.json").read_text())
        if job["init"] and os.getpid() == 1:
            os.execv(job["init"][0], job["init"])
        guest = Guest(job)
        os.environ.update(guest.environment)
        if jumped:
            guest.next_kernel()
        else:
            guest.first_kernel()
    except Exception:  # noqa: BLE001 - nobody is above: it has to be written down
        record("guest", 1, traceback.format_exc())
    finally:
        power_off()


if __name__ == "__main__":
    main()
