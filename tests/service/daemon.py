"""The whole daemon in this process; only the carrier and the kernel are fakes."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from fdbox.service.config import Config, QuotaSettings
from fdbox.service.daemon import Service

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from fdbox.service.update import Phase
    from tests.fakes.carrier import FakeCarrier, FakeKernel

CONFIG = Config(quota=QuotaSettings(boxes=3, entries=300, descriptors=300))


class Daemon:
    """A service on an event loop in a thread of its own."""

    def __init__(self, socket: Path, carrier: FakeCarrier, kernel: FakeKernel) -> None:
        self.socket, self.carrier, self.kernel = socket, carrier, kernel
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.service = self.run(self._start())

    async def _start(self) -> Service:
        service = Service(CONFIG, self.carrier, self.kernel)
        await service.start(self.socket)
        return service

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
