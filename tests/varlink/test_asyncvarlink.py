"""The daemon, as asyncvarlink sees it: a Python implementation of the protocol that shares no code with ours."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from asyncvarlink import VarlinkClientProtocol, VarlinkMethodCall, connect_unix_varlink
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from fdbox.linux import kcmp, memfd

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("daemon_process")]


def talk(socket: Path, scene: Any) -> None:  # noqa: ANN401 - a coroutine function
    async def run() -> None:
        transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, str(socket))
        try:
            await scene(protocol)
        finally:
            transport.close()
            await asyncio.sleep(0)

    asyncio.run(run())


async def call(
    protocol: VarlinkClientProtocol,
    method: str,
    fds: list[int] | None = None,
    **parameters: Any,  # noqa: ANN401 - JSON
) -> dict[str, Any]:
    found = await protocol.call(VarlinkMethodCall(f"io.fdbox.{method}", parameters), fds)
    assert found is not None
    if found[0].error is not None:
        return {"error": found[0].error, **found[0].parameters}
    return found[0].parameters


def test_it_is_told_what_there_is(socket_path: Path) -> None:
    async def scene(protocol: VarlinkClientProtocol) -> None:
        service = protocol.make_proxy(VarlinkServiceInterface)
        info = await service.GetInfo()
        assert info["interfaces"] == ["org.varlink.service", "io.fdbox"]
        text = await service.GetInterfaceDescription(interface="io.fdbox")
        assert "interface io.fdbox" in text["description"]

    talk(socket_path, scene)


def test_its_descriptors_come_back(socket_path: Path) -> None:
    async def scene(protocol: VarlinkClientProtocol) -> None:
        assert (await call(protocol, "CreateBox", box="b"))["created"]
        with memfd.create("one", 10) as one, memfd.create("two", 20) as two:
            entries = [
                {"name": "second", "fileDescriptor": 1},
                {"name": "first", "fileDescriptor": 0},
            ]
            put = await call(
                protocol, "Put", [one.fileno(), two.fileno()], box="b", entries=entries
            )
            assert [(entry["name"], entry["size"]) for entry in put["entries"]] == [
                ("second", 20),
                ("first", 10),
            ]
            done = asyncio.get_running_loop().create_future()
            names: Any = {"box": "b", "names": ["first", "second"]}
            found = await protocol.call(VarlinkMethodCall("io.fdbox.Get", names), None, done)
            assert found is not None
            got, descriptors = found
            assert descriptors is not None
            attachments: Any = got.parameters["entries"]
            for attached, original in zip(attachments, (one, two), strict=True):
                received = descriptors[attached["fileDescriptor"]].fileno()
                assert kcmp.same_file(received, original.fileno())
            done.set_result(None)
            await asyncio.sleep(0)

    talk(socket_path, scene)


def test_its_errors_are_ours(socket_path: Path) -> None:
    async def scene(protocol: VarlinkClientProtocol) -> None:
        refused = await call(protocol, "Get", box="none", names=["x"])
        assert refused["error"] == "io.fdbox.BoxNotFound"
        assert refused["box"] == "none"
        boxes = await call(protocol, "ListBoxes")
        assert boxes == {"boxes": []}

    talk(socket_path, scene)
