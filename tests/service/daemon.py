"""The whole daemon in this process; only the carrier and the kernel are fakes."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from fdbox.service.config import Config, QuotaSettings
from fdbox.service.daemon import Service
from tests.fakes.carrier import FakeCarrier

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from fdbox.linux.fd import OwnedFd
    from fdbox.ports import Carrier
    from fdbox.service.update import Phase
    from tests.fakes.carrier import FakeKernel

CONFIG = Config(quota=QuotaSettings(boxes=3, entries=300, descriptors=300))


class Daemon:
    """A service on an event loop in a thread of its own."""

    def __init__(
        self,
        socket: Path,
        carrier: Carrier[OwnedFd],
        kernel: FakeKernel,
        reports: Path | None = None,
    ) -> None:
        self.socket, self.kernel, self._reports = socket, kernel, reports
        self._carrier = carrier
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.service = self.run(self._start())

    async def _start(self) -> Service:
        service = Service(CONFIG, self._carrier, self.kernel, reports=self._reports)
        await service.start(self.socket)
        return service

    @property
    def carrier(self) -> FakeCarrier:
        """The carrier that it was given, for those who gave the fake one."""
        assert isinstance(self._carrier, FakeCarrier)
        return self._carrier

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - what the work returns
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def stop(self) -> None:
        self.run(self.service.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def phase(self) -> Phase:
        phase: Phase = self.service.live.machine.phase
        return phase
