from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdbox.nextkernel.abi import Abi, Scanner, scan
from tests.nextkernel import images

OTHERS = ("vfio-pci-v1", "iommufd_flb-v12")
KERNEL = images.kernel(registered=OTHERS)
EVERY = Abi(("kho-v4",), ("luo-v5",), ("memfd-v2",), tuple(sorted(OTHERS)))


def test_what_a_kernel_has() -> None:
    assert scan(KERNEL) == EVERY


def test_several_of_one_format() -> None:
    assert scan(b"\0kho-v3\0kho-v12\0kho-v12\0").kho == ("kho-v12", "kho-v3")


@pytest.mark.parametrize(
    "text",
    [
        b"incompatible with kho-v4\0",  # the end of a sentence
        b"\0kho-v4\n",
        b"\0kho-v4x\0",
        b"\0kho-v\0",
        b"\0kho-v1234567890\0",
        b"\0-v4\0",
        b"\0" + b"k" * 60 + b"kho-v4\0",
        b"\0vfio-v1\0" + bytes(48),  # a constant like any other
        b"\xff\xffvfio-v1\0" + bytes(30) + b"\1" + bytes(20),  # no field of 48 bytes
        b"\xff\xffvfio-v1\0",
        b"",
    ],
)
def test_what_is_none_of_them(text: bytes) -> None:
    assert scan(text) == Abi()


@given(cuts=st.lists(st.integers(0, len(KERNEL)), max_size=6))
def test_in_pieces_of_any_size(cuts: list[int]) -> None:
    scanner = Scanner()
    edges = [0, *sorted(cuts), len(KERNEL)]
    for begin, end in itertools.pairwise(edges):
        scanner.feed(KERNEL[begin:end])
    assert scanner.result() == EVERY


def test_cut_at_every_byte_of_every_string() -> None:
    text = (
        b"a sentence about kho-v9\0\0kho-v4\0luo-v5\0" + images.handler("vfio-v1") + b"x-luo-v7\0"
    )
    text = b"." * 200 + text + b"." * 200
    for cut in range(len(text)):
        scanner = Scanner()
        scanner.feed(text[:cut])
        scanner.feed(text[cut:])
        assert scanner.result() == Abi(("kho-v4",), ("luo-v5",), (), ("vfio-v1",)), cut


def test_byte_by_byte() -> None:
    text = (
        b"." * 200
        + b"about kho-v9\0\0luo-v5\0"
        + images.handler("memfd-v2")
        + images.handler("vfio-v1")
    )
    scanner = Scanner()
    for at in range(len(text)):
        scanner.feed(text[at : at + 1])
    assert scanner.result() == Abi((), ("luo-v5",), ("memfd-v2",), ("vfio-v1",))
