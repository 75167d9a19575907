"""The initrd: busybox, modules, and one script, which puts the host's root under an overlay and runs guest.py in it.

Folders that the machine exports as `layer0`, `layer1`, ... are laid over that root, the first one on top.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm import debian

if TYPE_CHECKING:
    from tests.vm.kernel import Kernel

TOOLS = {"/bin/busybox": "busybox-static", "cpio": "cpio"}

#: how a folder that is not written to is mounted, and one that both sides write to
_MOUNTS = {
    "9p": (
        "9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose",
        "9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none",
    ),
    "virtiofs": ("virtiofs -o ro", "virtiofs -o rw"),
}
_INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*.ko; do [ -e $module ] && insmod $module; done
mount -t @READ@ hostroot /lower
mount -t tmpfs -o size=50% tmpfs /rw; mkdir /rw/upper /rw/work
lower=
for layer in @LAYERS@; do
    mkdir /$layer; mount -t @READ@ $layer /$layer
    lower=$lower/$layer:
done
mount -t overlay -o lowerdir=$lower/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root
cd /root
rm -f .dockerenv # the host may be a container; this is none, and systemd asks
mount -t proc proc proc; mount -t sysfs sys sys; mount -t devtmpfs dev dev; mount -t debugfs debug sys/kernel/debug
mkdir -p dev/pts dev/shm run tmp; mount -t devpts devpts dev/pts; mount -t tmpfs shm dev/shm
mount -t tmpfs run run; mkdir run/vm; mkdir sys/fs/cgroup 2>/dev/null
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t @SHARE@ share run/vm
mkdir run/disk; mount -t ext4 /dev/vda run/disk
ip link set lo up
exec chroot /root @PYTHON@ @GUEST@ </dev/null >/dev/console 2>&1
"""


def build(into: Path, kernel: Kernel, python: Path, guest: Path, layers: int = 0) -> Path:
    """Return an initrd in the new folder `into` that runs `guest` with `python`, both as the host names them."""
    debian.ensure_programs(TOOLS)
    tree = into / "tree"
    for folder in ("bin", "dev", "proc", "sys", "lower", "rw", "root", "modules"):
        (tree / folder).mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    for number, module in enumerate(kernel.modules):
        shutil.copy(module, tree / f"modules/{number:03}-{module.name}")
    read, share = _MOUNTS[kernel.transport]
    script = _INIT.replace("@LAYERS@", " ".join(f"layer{number}" for number in range(layers)))
    script = script.replace("@READ@", read).replace("@SHARE@", share)
    init = tree / "init"
    init.write_text(script.replace("@PYTHON@", str(python)).replace("@GUEST@", str(guest)))
    init.chmod(0o755)
    image = into / "initrd.img"
    command = "find . | cpio --quiet -o -H newc | gzip -1"
    with image.open("wb") as out:
        subprocess.run(command, shell=True, cwd=tree, stdout=out, check=True)
    return image
