"""The daemon `fdbox serve`: everything put together, from the configuration to the signal that ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from importlib import metadata
from typing import TYPE_CHECKING

from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.linux import sdnotify
from fdbox.nextkernel.load import RunningKernel
from fdbox.service.boxes import Quota
from fdbox.service.keep import Keep
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
#: names of that many fit into LISTEN_FDNAMES, which takes 128 KiB
_MOST_KEPT = 16_384


def run(config: Config, socket: Path) -> bool:
    """Serve until SIGTERM or SIGINT; or until SIGHUP, and then return True: another process is to take over.

    Raises:
        FdboxError: it cannot begin.
    """
    logging.basicConfig(level=logging.INFO, format="fdbox: %(message)s")
    given = sdnotify.take_inherited(os.environ)
    return asyncio.run(_serve(config, socket, given))


async def _serve(config: Config, socket: Path, given: Sequence[tuple[str, OwnedFd]]) -> bool:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[bool] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, _end, stop, number == signal.SIGHUP)
    keep = Keep(os.environ["NOTIFY_SOCKET"], given) if is_kept() else None
    service = Service(config, KernelCarrier(), RunningKernel(), keep)
    await service.start(socket)
    log.info("serving at %s", socket)
    again = await stop
    await service.close(again=again)
    return again


def is_kept() -> bool:
    """Return whether a keeper, ours or systemd's, holds descriptors for this process."""
    return bool(os.environ.get("FDSTORE", "0").strip("0") and os.environ.get("NOTIFY_SOCKET"))


def _end(stop: asyncio.Future[bool], again: bool) -> None:  # noqa: FBT001 - of a signal handler
    if not stop.done():
        stop.set_result(again)


class Service:
    """The daemon's parts; `carrier`, `kernel` and `keep` are injected."""

    def __init__(
        self,
        config: Config,
        carrier: Carrier[OwnedFd],
        kernel: Kernel,
        keep: Keep | None = None,
    ) -> None:
        """Put the parts together, inside a running event loop; nothing is served yet."""
        self._keep = keep
        quota = Quota(
            boxes=config.quota.boxes,
            entries=config.quota.entries,
            descriptors=config.quota.descriptors,
            everybody=_room_for_descriptors(kept=keep is not None),
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
        """Take in what the last process and the last kernel left, then listen: nobody sees a box before it is whole."""
        if self._keep is None:
            await asyncio.to_thread(self.vault.receive)
            await self.server.listen(socket)
            return
        await asyncio.to_thread(self.vault.take_over, self._keep)
        await asyncio.to_thread(self.vault.receive)
        inherited = self._keep.take_listener()
        is_new = inherited is None
        await self._keep.begin()
        await self.vault.make_safe()
        await self.server.listen(socket, inherited=inherited)
        await self._keep.ready(self.server.listener if is_new else None)

    async def close(self, *, again: bool = False) -> None:
        """End everything in order: what runs, who is connected, what is held. `again`: another process takes over."""
        await self.live.close()
        await self.server.close(again=again)
        await self.vault.close()
        if self._keep is not None:
            await self._keep.close(again=again)

    def _discard(self, descriptors: Sequence[OwnedFd | None]) -> None:
        self.server.discard(descriptors)


def _room_for_descriptors(*, kept: bool) -> int:
    """Raise the limit as far as it goes, and return how many descriptors boxes may hold.

    While a keeper starts this process, each takes two numbers; and it can name only so many.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = hard - min(_RESERVED_DESCRIPTORS, hard // 4)
    return min(room // 2, _MOST_KEPT) if kept else room
