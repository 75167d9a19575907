"""What no kernel can hold: recognised, and refused with a reason."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import pytest

from fdbox.errors import CannotCarry
from fdbox.handover import seal
from fdbox.kinds import registry
from fdbox.kinds.look import look
from fdbox.kinds.refused import KINDS
from fdbox.linux.fd import OwnedFd, close_all
from tests.fakes.carrier import FakeCarrier, FakeKernel
from tests.kinds.conformance import BOX, described, kinds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIBC = ctypes.CDLL(None, use_errno=True)
# arch/x86/entry/syscalls/syscall_64.tbl; the generic table has the same from 424 on
SYS_IO_URING_SETUP, SYS_MEMFD_SECRET = 425, 447
SYS_USERFAULTFD, SYS_BPF, SYS_PERF_EVENT_OPEN = 323, 321, 298


def called(*arguments: object) -> OwnedFd:
    """Return the descriptor that a system call gives; skip where this kernel does not have it."""
    fd = LIBC.syscall(*arguments)
    if fd < 0:
        pytest.skip(f"system call {arguments[0]}: {os.strerror(ctypes.get_errno())}")
    return OwnedFd(fd)


def bpf() -> OwnedFd:
    # union bpf_attr { map_type = BPF_MAP_TYPE_ARRAY, key_size, value_size, max_entries }
    attributes = (ctypes.c_uint32 * 32)(2, 4, 8, 1)
    return called(SYS_BPF, 0, attributes, ctypes.sizeof(attributes))


def perf_event() -> OwnedFd:
    # struct perf_event_attr { type = PERF_TYPE_SOFTWARE, size = 64, config = PERF_COUNT_SW_DUMMY }
    attributes = (ctypes.c_uint32 * 16)(1, 64, 9)
    return called(SYS_PERF_EVENT_OPEN, attributes, 0, -1, -1, 8)


MADE: dict[str, Callable[[], OwnedFd]] = {
    "pidfd": lambda: OwnedFd(os.pidfd_open(os.getpid())),
    "io-uring": lambda: called(SYS_IO_URING_SETUP, 1, (ctypes.c_char * 120)()),
    "bpf": bpf,
    "perf-event": perf_event,
    "userfaultfd": lambda: called(SYS_USERFAULTFD, os.O_CLOEXEC),
    "secretmem": lambda: called(SYS_MEMFD_SECRET, 0),
}


@pytest.fixture
def held() -> Iterator[list[OwnedFd]]:
    made: list[OwnedFd] = []
    yield made
    close_all(made)


def test_there_is_one_of_each() -> None:
    assert set(MADE) == {kind.name for kind in KINDS}


@pytest.mark.root
@pytest.mark.parametrize("name", MADE)
def test_it_is_recognised_and_refused_with_a_reason(name: str, held: list[OwnedFd]) -> None:
    held.append(MADE[name]())
    assert kinds_of(held[0].fileno()) == [name]
    seen = look(held[0].fileno())
    carriage = registry.recognise(seen).carriage(seen, FakeCarrier())
    assert carriage.carrier is None
    with pytest.raises(CannotCarry) as caught:
        seal.seal(BOX, described({"it": held[0]}), FakeCarrier(), FakeKernel())
    assert carriage.obstacle in caught.value.message
    assert caught.value.remedy == carriage.remedy
    assert caught.value.context == {"box": BOX.name, "entry": "it", "kind": name}
