"""Real kernels: ours packed by every method, Debian's own, and jumps into patched ones that show whether a verdict is right."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdbox.errors import KernelImageInvalid
from fdbox.linux import memfd
from fdbox.linux.fd import open_path
from fdbox.nextkernel.abi import Abi
from fdbox.nextkernel.decompress import decompress
from fdbox.nextkernel.inspect import KernelImage, inspect
from tests.nextkernel import images
from tests.nextkernel.test_decompress import COMMANDS, tool
from tests.vm.kernel import Kernel, ensure_kernel
from tests.vm.machine import Machine, VmLost
from tests.vm.stock import ensure_arm64_image, ensure_stock_kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow]

SCRIPTS = Path(__file__).with_name("scripts")


@pytest.fixture(scope="module")
def ours() -> bytes:
    return ensure_kernel().read_bytes()


@pytest.fixture(scope="module")
def plain(ours: bytes) -> bytes:
    """Return our kernel unpacked."""
    return decompress(images.payload_of(ours))


def look(data: bytes) -> KernelImage:
    with memfd.create("kernel") as file:
        os.pwrite(file.fileno(), data, 0)
        return inspect(file.fileno())


@pytest.fixture(scope="module")
def original(ours: bytes) -> KernelImage:
    return look(ours)


def test_ours(original: KernelImage) -> None:
    assert (original.format, original.machine, original.obstacles) == ("bzImage", "x86_64", ())
    assert original.banner.startswith(f"Linux version {original.release} (")
    assert [len(part) for part in (original.abi.kho, original.abi.luo, original.abi.memfd)] == [
        1
    ] * 3
    assert original.configuration is not None
    assert original.configuration.source == "the image"
    assert original.configuration.has("LIVEUPDATE_MEMFD")
    assert not original.signed
    assert original.memory > 8 << 20


@pytest.mark.parametrize("method", COMMANDS)
def test_ours_packed_by_every_method(
    ours: bytes, plain: bytes, original: KernelImage, method: str
) -> None:
    found = look(images.repacked(ours, tool(method, plain)))
    assert found.compression == method
    assert (found.banner, found.abi) == (original.banner, original.abi)
    assert found.configuration == original.configuration


@pytest.fixture(scope="module")
def debians() -> Path:
    """Return the image of Debian's own kernel for clouds, where its packages leave it."""
    return ensure_stock_kernel().image


def test_debians_own(debians: Path) -> None:
    with open_path(debians, os.O_RDONLY) as file:
        found = inspect(file.fileno())
    assert found.release == debians.parent.name
    assert "Debian" in found.banner
    assert found.signed
    assert found.obstacles == ()
    assert found.abi == Abi(), "built without KHO"
    assert found.configuration is not None
    assert found.configuration.source == str(debians.with_name("config"))
    assert found.configuration.has("KEXEC_SIG")
    assert not found.configuration.has("KEXEC_HANDOVER")


def test_debians_own_for_arm64() -> None:
    path = ensure_arm64_image()
    with open_path(path, os.O_RDONLY) as file:
        found = inspect(file.fileno())
    assert (found.format, found.machine, found.compression) == ("Image", "aarch64", None)
    assert found.release == path.parent.name
    assert found.banner.startswith(f"Linux version {found.release} (")
    assert (found.obstacles, found.signed) == ((), True)
    assert found.configuration is not None
    assert found.configuration.source == str(path.with_name("config"))
    assert found.configuration.has("ARM64")
    zboot = look(images.zboot(tool("gzip", path.read_bytes())))
    assert (zboot.format, zboot.machine, zboot.compression) == ("EFI zboot", "aarch64", "gzip")
    assert (zboot.banner, zboot.abi) == (found.banner, found.abi)


@pytest.mark.parametrize("missing", [1, 2000, 100_000])
def test_ours_and_debians_cut_short(ours: bytes, debians: Path, missing: int) -> None:
    for image in (ours, debians.read_bytes(), ensure_arm64_image().read_bytes()):
        with pytest.raises(KernelImageInvalid, match="cut short"):
            look(image[:-missing])


@pytest.mark.parametrize("left", [64, 4096, 1 << 20])
def test_what_is_left_of_debians_own_for_arm64(left: int) -> None:
    with pytest.raises(KernelImageInvalid, match="cut short"):
        look(ensure_arm64_image().read_bytes()[:left])


@pytest.fixture(scope="module")
def heads(ours: bytes, debians: Path) -> list[bytes]:
    """Return real headers, each before a kernel small enough to be unpacked thousands of times."""
    small = gzip.compress(images.kernel())
    return [images.repacked(real, small) for real in (ours, debians.read_bytes())]


@given(data=st.data())
@settings(max_examples=500)
def test_real_headers_that_lie(heads: list[bytes], data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from(heads)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, 0x400))
        image[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    release = reason = ""
    end = data.draw(st.just(len(image)) | st.integers(0x200, len(image)))
    try:
        release = look(bytes(image[:end])).release
    except KernelImageInvalid as error:
        reason = error.message
    assert release or reason


# --- whether a verdict is right --------------------------------------------------------------------------------------


def test_the_running_kernel_shows_what_it_writes() -> None:
    machine = Machine(environment={"FDBOX_IMAGE": str(ensure_kernel())})
    outcome = machine.boot(SCRIPTS / "running.py")
    print(outcome)
    assert outcome.good, str(outcome)


def jump(tmp_path: Path, image: bytes, expected: str, *, opens: bool, append: str = "") -> str:
    """Jump into an image whatever is thought of it; return what was said."""
    path = tmp_path / "next"
    path.write_bytes(image)
    environment = {
        "FDBOX_EXPECTED": expected,
        "FDBOX_OPENS": str(opens),
        "FDBOX_NEXT_APPEND": append,
    }
    machine = Machine(next_kernel=Kernel(path), environment=environment, jump=SCRIPTS / "jump.py")
    outcome = machine.cross(SCRIPTS / "judged_before.py", SCRIPTS / "judged_after.py")
    print(outcome)
    assert outcome.good, str(outcome)
    return str(outcome)


def patched(ours: bytes, plain: bytes, old: tuple[str, ...]) -> bytes:
    """Return our kernel with other versions of these strings."""
    for text in old:
        before = text.encode() + b"\0"
        assert plain.count(before) == 1
        plain = plain.replace(before, text[:-1].encode() + b"9\0")
    # What unpacks it knows how long it was: without the configuration, which nothing makes smaller, there is room.
    begin, end = plain.index(b"IKCFG_ST"), plain.index(b"IKCFG_ED")
    plain = plain[:begin] + bytes(end - begin) + plain[end:]
    return images.replaced(ours, tool("xz", plain))


def test_it_is_right_that_the_same_kernel_takes_over(tmp_path: Path, ours: bytes) -> None:
    said = jump(tmp_path, ours, "handover=True survives=True", opens=True)
    assert "kho=Written(strings=('kho-v" in said


def test_it_is_right_that_it_panics(
    tmp_path: Path, ours: bytes, plain: bytes, original: KernelImage
) -> None:
    image = patched(ours, plain, original.abi.luo)
    with pytest.raises(VmLost, match="Kernel panic") as lost:
        jump(tmp_path, image, "handover=False survives=False", opens=False)
    assert "LUO format" in str(lost.value)


def test_it_is_right_that_kho_off_lets_it_start(
    tmp_path: Path, ours: bytes, plain: bytes, original: KernelImage
) -> None:
    image = patched(ours, plain, original.abi.luo)
    expected = "handover=False survives=True"
    assert "kho=off" in jump(tmp_path, image, expected, opens=False, append="kho=off")


def test_it_is_right_that_another_kho_is_survived(
    tmp_path: Path, ours: bytes, plain: bytes, original: KernelImage
) -> None:
    image = patched(ours, plain, (*original.abi.kho, *original.abi.luo))
    said = jump(tmp_path, image, "handover=False survives=True", opens=True)
    assert "KHO format" in said
