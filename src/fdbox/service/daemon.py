"""The daemon `fdbox serve`: everything put together, from the configuration to the signal that ends it."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from importlib import metadata
from typing import TYPE_CHECKING

from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.nextkernel.load import RunningKernel
from fdbox.service.boxes import Quota
from fdbox.service.live import LiveUpdate
from fdbox.service.methods import Methods
from fdbox.service.server import Server
from fdbox.service.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fdbox.linux.fd import OwnedFd
    from fdbox.ports import Carrier, Kernel
    from fdbox.service.config import Config

log: logging.Logger = logging.getLogger(__name__)

#: descriptors kept free for connections, calls on their way, and sealing
_RESERVED_DESCRIPTORS = 2048


def run(config: Config, socket: Path) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        FdboxError: it cannot begin.
    """
    logging.basicConfig(level=logging.INFO, format="fdbox: %(message)s")
    asyncio.run(_serve(config, socket))


async def _serve(config: Config, socket: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service = Service(config, KernelCarrier(), RunningKernel())
    await service.start(socket)
    log.info("serving at %s", socket)
    await stop.wait()
    await service.close()


class Service:
    """The daemon's parts; `carrier` and `kernel` are injected."""

    def __init__(self, config: Config, carrier: Carrier[OwnedFd], kernel: Kernel) -> None:
        """Put the parts together, inside a running event loop; nothing is served yet."""
        quota = Quota(
            boxes=config.quota.boxes,
            entries=config.quota.entries,
            descriptors=config.quota.descriptors,
            everybody=_room_for_descriptors(),
        )
        self.vault: Vault = Vault(quota, carrier, kernel)
        self.live: LiveUpdate = LiveUpdate(self.vault, self._discard)
        version = metadata.version("fdbox")
        methods = Methods(
            self.vault,
            self.live,
            self._discard,
            version=version,
            timeout=config.update.timeout,
        )
        self.server: Server = Server(
            methods.table(),
            version=version,
            stall_seconds=config.server.idle_timeout,
            connections_per_user=config.server.connections_per_user,
        )

    async def start(self, socket: Path) -> None:
        """Take in what the last kernel left, then listen: nobody sees a box before it is whole."""
        await asyncio.to_thread(self.vault.receive)
        await self.server.listen(socket)

    async def close(self) -> None:
        """End everything in order: what runs, who is connected, what is held."""
        await self.live.close()
        await self.server.close()
        await self.vault.close()

    def _discard(self, descriptors: Sequence[OwnedFd | None]) -> None:
        self.server.discard(descriptors)


def _room_for_descriptors() -> int:
    """Raise the limit as far as it goes, and return how many descriptors boxes may hold."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, hard - _RESERVED_DESCRIPTORS)
