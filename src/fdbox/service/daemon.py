"""The daemon `fdbox serve`: everything put together, from the configuration to the signal that ends it."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import resource
import signal
import time
from importlib import metadata
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, KeeperGone, UpdateInProgress, UpgradeRefused
from fdbox.handover.carriers.choice import KernelAndImage
from fdbox.handover.carriers.image import ImageCarrier
from fdbox.handover.carriers.kernel import KernelCarrier
from fdbox.keeper import protocol
from fdbox.linux import sdnotify
from fdbox.linux.fd import OwnedFd, close_all, dup
from fdbox.nextkernel.load import RunningKernel
from fdbox.ports import go_on
from fdbox.service import upgrade
from fdbox.service.arrival import Arrival
from fdbox.service.boxes import Quota
from fdbox.service.config import image_directory, load
from fdbox.service.keep import LISTENER, Keep
from fdbox.service.lastupdate import LastUpdate
from fdbox.service.live import LiveUpdate
from fdbox.service.methods import Methods
from fdbox.service.server import Server
from fdbox.service.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from fdbox.ports import Carrier, Kernel, Reached
    from fdbox.service.config import Config

log: logging.Logger = logging.getLogger(__name__)

#: descriptors kept free for connections, calls on their way, and sealing
_RESERVED_DESCRIPTORS = 2048

#: What a process gives to the one that takes over: names as the keeper has them, and descriptors.
Heirlooms = list[tuple[str, OwnedFd]]


def run(config: Path | None, socket: Path) -> Heirlooms | None:
    """Serve until SIGTERM or SIGINT; or until `fdbox reexec` or SIGHUP, and then return what takes over is to be given.

    Raises:
        FdboxError: it cannot begin.
    """
    logging.basicConfig(level=logging.INFO, format="fdbox: %(message)s")
    given = sdnotify.take_inherited(os.environ)
    kernel = RunningKernel()
    check = functools.partial(upgrade.check_code_on_disk, config)
    settings = load(config)
    images = image_directory(settings.image)
    carrier = KernelAndImage(KernelCarrier(), ImageCarrier(images, kernel))
    make = functools.partial(Service, settings, carrier, kernel, reports=images, check=check)
    loop = asyncio.new_event_loop()
    try:
        # Not asyncio.run, which waits for the threads that close what clients have opened: that may take long.
        return loop.run_until_complete(serve(make, socket, given, kernel.incarnation()))
    finally:
        loop.close()


async def serve(
    make: Callable[[Keep], Service],
    socket: Path,
    given: Sequence[tuple[str, OwnedFd]],
    incarnation: str,
    reached: Reached = go_on,
) -> Heirlooms | None:
    """Serve as `run` does, with what is injected."""
    loop = asyncio.get_running_loop()
    service = make(Keep(os.environ, given, incarnation, reached))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    await service.start(socket)
    log.info("serving at %s", socket)
    again = await service.stopped
    return await service.close(again=again)


class Service:
    """The daemon's parts; `carrier`, `kernel`, `keep` and `reached` are injected."""

    def __init__(  # noqa: PLR0913 - all that is injected
        self,
        config: Config,
        carrier: Carrier[OwnedFd],
        kernel: Kernel,
        keep: Keep | None = None,
        reached: Reached = go_on,
        *,
        reports: Path | None = None,
        check: Callable[[], Awaitable[str]] = upgrade.check_code_on_disk,
    ) -> None:
        """Put the parts together, inside a running event loop; nothing is served yet.

        `reports` is the folder of images, where it is also written down how an update went. `check` returns the version of the code that would take over, or raises UpgradeRefused.
        """
        self._check = check
        #: done when this process is to end; True: another one takes over
        self.stopped: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._keep = keep
        self._arrival: Arrival | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._is_over = False
        quota = Quota(
            boxes=config.quota.boxes,
            entries=config.quota.entries,
            descriptors=config.quota.descriptors,
            everybody=_room_for_descriptors(kept=keep is not None),
        )
        self.vault: Vault = Vault(quota, carrier, kernel, reached)
        self.live: LiveUpdate = LiveUpdate(self.vault, self._discard, LastUpdate(reports))
        version = metadata.version("fdbox")
        methods = Methods(
            self.vault,
            self.live,
            self._discard,
            self.replace,
            version=version,
            timeout=config.update.timeout,
            images=reports,
        )
        self.server: Server = Server(
            methods.table(),
            version=version,
            stall_seconds=config.server.idle_timeout,
            connections_per_user=config.server.connections_per_user,
        )

    async def start(self, socket: Path) -> None:
        """Take in what the last process and the last kernel left, then serve: nobody sees a box before it is whole.

        What may keep us from serving at all comes first, while the keeper has nothing of the last kernel to lose.
        """
        inherited = None if self._keep is None else self._keep.take_listener()
        is_known = await self.server.listen(socket, inherited=inherited)
        sessions = {}
        if self._keep is not None:
            await asyncio.to_thread(self.vault.take_over, self._keep)
            sessions = self._keep.take_sessions()
            await self._keep.begin(None if is_known else self.server.listener)
        self._arrival = Arrival(self.vault, sessions)
        await self._arrival.receive()
        kernel = self.vault.kernel
        self.live.last.arrives(kernel.incarnation(), kernel.realtime(), self._arrival.there)
        await self.vault.take_back_next_kernel()
        await self.vault.seal_again()
        self.server.begin()
        if self._keep is not None:
            try:
                await self._keep.ready()
            except KeeperGone as error:  # who ends now takes along what the keeper had
                log.error("going on without a keeper: %s", error)  # noqa: TRY400 - the sentence says it all

    async def replace(self) -> str:
        """Have the code now on disk take over, the keeper's too; return its version.

        Raises:
            UpgradeRefused: it does not start.
            UpdateInProgress: not in the middle of a live update.
        """
        version = await self._check()
        if not self.live.idle:
            raise UpdateInProgress("the daemon is not replaced in the middle of a live update")
        if self._keep is not None:
            self._check_held()
            try:
                await self._keep.replace_keeper()
            except KeeperGone as error:  # what is held hangs on this process alone
                raise UpgradeRefused(error.message, remedy=error.remedy) from error
            self._keep.reloading(time.monotonic())
        self._end(again=True)
        return version

    def _check_held(self) -> None:
        """Refuse to end while this process alone holds something that has arrived, and that the keeper had no room for."""
        if loose := self.vault.unheld:
            raise UpgradeRefused(
                f"the keeper does not hold {len(loose)} entries, {loose[0]!r} among them: they would end with this process",
                remedy="take them out of their boxes, and put them in again",
            )

    def reload(self) -> None:
        """Do what SIGHUP asks for: `replace`, and if that cannot be, say why and go on."""
        if self._reloading is None:
            self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        try:
            log.info("fdbox %s takes over", await self.replace())
        except FdboxError as error:
            log.error("going on as it is: %s", error)  # noqa: TRY400 - the sentence says it all
            if self._keep is not None:
                self._keep.reloading(time.monotonic())
                self._keep.say_status(f"not replaced: {error.message}")
        finally:
            self._reloading = None

    def stop(self) -> None:
        """Do what SIGTERM asks for, also when another process was to take over."""
        self._is_over = True
        self._end(again=False)

    def _end(self, *, again: bool) -> None:
        if not self.stopped.done():
            self.stopped.set_result(again)

    async def close(self, *, again: bool = False) -> Heirlooms | None:
        """End everything in order: what runs, who is connected, what is held. `again`: return it, for who takes over."""
        heirlooms: Heirlooms = []
        await self.live.close()
        again &= not self._is_over
        if again:
            assert self._arrival is not None
            heirlooms += self._arrival.hand_over()
            heirlooms.append((LISTENER, dup(self.server.listener.fileno())))
        elif self._keep is not None:
            self._keep.forget_listener()
        await self.server.close(again=again)
        if again:
            heirlooms += await self.vault.hand_over()
        else:
            await self.vault.close()
        if self._keep is not None:
            heirlooms += await self._keep.close()
        if again and not self._is_over:
            return heirlooms
        close_all(fd for _, fd in heirlooms)
        return None

    def _discard(self, descriptors: Sequence[OwnedFd | None]) -> None:
        self.server.discard(descriptors)


def _room_for_descriptors(*, kept: bool) -> int:
    """Raise the limit as far as it goes, and return how many descriptors boxes may hold.

    While a keeper starts this process, each takes two numbers.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = hard - min(_RESERVED_DESCRIPTORS, hard // 4)
    if not kept:
        return room
    return min(room // 2, protocol.room_for_entries(os.environ))
