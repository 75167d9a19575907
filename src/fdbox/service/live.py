"""The live update as it really happens: does what the state machine (update.py) asks for, and tells it how that went.

Actions are done one after the other by one task, so that what undoes a step never overtakes it. After each step the
machine is asked again: somebody may have called the update off meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdbox.errors import FdboxError, KernelError, NoUpdate, UpdateInProgress
from fdbox.linux.fd import OwnedFd
from fdbox.service import dryrun, fitness
from fdbox.service.update import Action, Phase, Update
from fdbox.varlink.interface import Load, SubscribeReply, UpdateReply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fdbox.handover import seal
    from fdbox.model import BoxKey
    from fdbox.service.lastupdate import LastUpdate
    from fdbox.service.vault import Vault

log: logging.Logger = logging.getLogger(__name__)

Discard = Callable[[Sequence[OwnedFd | None]], None]

_CHECKED = "nobody was told, nothing was sealed"
_TAKEN_BACK = "what was loaded is taken back"
#: From here on every change would be lost, or would spoil what is saved.
_NO_CHANGES = (Phase.SEALING, Phase.COMMITTING)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an update is to do; it owns the images. Without a kernel the machine is rebooted."""

    kernel: OwnedFd | None
    initrd: OwnedFd | None
    command_line: str
    timeout: float
    proceed_at_deadline: bool = False
    save_again: bool = True
    dry_run: bool = False
    images_only: bool = False
    #: go on where inspection says that it will not do
    force: bool = False

    @property
    def images(self) -> list[OwnedFd | None]:
        """What has to be closed in the end."""
        return [self.kernel, self.initrd]


class LiveUpdate:
    """The one update there can be, and who wants to hear of it."""

    def __init__(self, vault: Vault, discard: Discard, last: LastUpdate) -> None:
        """`discard` closes descriptors off the event loop; `last` is told how it goes."""
        self.machine: Update = Update()
        self._vault = vault
        self._discard = discard
        self._plan: Plan | None = None
        self._detail = ""
        self._has_loaded = False
        #: whether anybody was told; what fails before, and a dry run, says nothing of how an update went
        self._is_announced = False
        self._loads: list[Load] = []
        #: what is wrong with the next kernel, and was forced
        self._warnings: list[str] = []
        self.last = last
        #: when each phase began, of the clock that goes on across incarnations
        self._phases: dict[str, int] = {}
        self._work: asyncio.Task[None] | None = None
        self._queue: list[Action] = []
        self._deadline: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._mailboxes: dict[str, asyncio.Queue[SubscribeReply]] = {}
        self._do: dict[Action, Callable[[], Awaitable[None]]] = {
            Action.LOAD: self._load,
            Action.ANNOUNCE: self._announce,
            Action.SEAL: self._seal,
            Action.COMMIT: self._commit,
            Action.THAW: vault.thaw_all,
            Action.UNLOAD: self._unload,
            Action.RECALL: self._recall,
            Action.FINISH: self._finish,
        }

    @property
    def idle(self) -> bool:
        """Whether no update is running."""
        return self.machine.phase is Phase.IDLE

    def check_changes_allowed(self) -> None:
        """Raise UpdateInProgress while boxes are being sealed for an update."""
        if self.machine.phase in _NO_CHANGES:
            raise UpdateInProgress(f"an update is {self.machine.phase.value}")

    # --- the one who begins ------------------------------------------------------------------------------------------

    async def run(self, plan: Plan) -> AsyncIterator[UpdateReply]:
        """Yield where the update stands, each time that changes; owns `plan`. Ends by raising, or after a dry run.

        Raises:
            UpdateInProgress: there is one already.
            FdboxError: why it was undone.
        """
        try:
            actions = self.machine.begin(
                proceed_at_deadline=plan.proceed_at_deadline, dry_run=plan.dry_run
            )
        except BaseException:
            self._discard(plan.images)
            raise
        self._plan, self._detail, self._is_announced = plan, "", False
        self._loads, self._warnings, self._phases = [], [], {}
        self._perform(actions)
        try:
            while self.machine.phase is not Phase.IDLE:
                self._changed.clear()
                yield self._report(self.machine.phase.value)
                await self._changed.wait()
        finally:
            # Whoever began it has gone away: nobody watches, so nothing is to happen.
            with contextlib.suppress(NoUpdate, UpdateInProgress):
                self.abort()
        if self.machine.failure is not None:
            raise self.machine.failure
        yield self._report("checked")

    def abort(self) -> None:
        """Call the update off; NoUpdate if there is none, UpdateInProgress if it is too late."""
        self._perform(self.machine.abort())

    def _report(self, phase: str) -> UpdateReply:
        return UpdateReply(
            phase=phase,
            waiting=self.machine.waiting,
            detail=self._detail,
            loads=self._loads,
            warnings=self._warnings,
        )

    # --- the subscribers ---------------------------------------------------------------------------------------------

    async def subscribe(self, name: str) -> AsyncIterator[SubscribeReply]:
        """Yield `subscribed` with the key for `ready`, then every event, until the subscriber goes away."""
        key = secrets.token_hex(16)
        mailbox = self._mailboxes[key] = asyncio.Queue()
        try:
            mailbox.put_nowait(SubscribeReply(event="subscribed", subscriber=key))
            if self.machine.subscribed(key, name):
                self._tell(key, "prepare")
                self._notify()
            while True:
                yield await mailbox.get()
        finally:
            del self._mailboxes[key]
            self._perform(self.machine.gone(key))

    def ready(self, key: str) -> None:
        """Take note that a subscriber has done its last writing."""
        self._perform(self.machine.ready(key))

    def _tell(self, key: str, event: str) -> None:
        left = None
        if self._deadline is not None and event == "prepare":
            left = max(0.0, self._deadline.when() - asyncio.get_running_loop().time())
        self._mailboxes[key].put_nowait(
            SubscribeReply(event=event, subscriber=key, timeout_seconds=left)
        )

    # --- doing -------------------------------------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        self._queue += actions
        self._notify()
        if self._queue and self._work is None:
            self._work = asyncio.create_task(self._empty_queue())

    def _notify(self) -> None:
        self._phases.setdefault(self.machine.phase.value, self._vault.kernel.realtime())
        self._changed.set()

    async def _empty_queue(self) -> None:
        try:
            while self._queue:
                await self._step(self._queue.pop(0))
        finally:
            self._work = None

    async def _step(self, action: Action) -> None:
        log.info("update: %s", action.value)
        try:
            await self._do[action]()
        except FdboxError as error:
            self._failed(action, error)
        except OSError as error:
            self._failed(action, KernelError(f"{action.value}: {error}", errno=error.errno or 0))
        except Exception as error:
            log.exception("update: cannot %s", action.value)
            why = f"{action.value}: {type(error).__name__}: {error}"
            self._failed(
                action, FdboxError(why, remedy="the daemon's log has a traceback: report it")
            )
        self._vault.reached(f"update: {action.name}")

    def _failed(self, action: Action, error: FdboxError) -> None:
        log.error("update: cannot %s: %s", action.value, error)
        with contextlib.suppress(NoUpdate):  # it is being undone already
            self._perform(self.machine.failed(error))

    async def _load(self) -> None:
        assert self._plan is not None
        if self._plan.kernel is not None:
            await asyncio.to_thread(self._judge, self._plan.kernel)
            await self._load_first()
        if self.machine.dry_run:
            expected = await dryrun.expect(self._vault, images_only=self._plan.images_only)
            self._loads = [load for key, loads in expected.loads for load in sums(key, loads)]
            self._warnings += expected.warnings
            self._detail = _CHECKED if self._plan.kernel is None else f"{_TAKEN_BACK}; {_CHECKED}"
        if self.machine.phase is Phase.LOADING:
            self._perform(self.machine.loaded())

    async def _load_first(self) -> None:
        """Load the next kernel; whoever must unload it knows: this process when it is loaded, the one after it before."""
        self._vault.note_next_kernel(loaded=True)
        try:
            await asyncio.to_thread(self._load_kernel)
        except Exception:
            self._vault.note_next_kernel(loaded=False)
            raise
        self._has_loaded = True

    def _judge(self, kernel: OwnedFd) -> None:
        """Refuse a kernel that would lose what boxes hold, before anybody is told."""
        assert self._plan is not None
        verdict = self._vault.kernel.judge(kernel.fileno(), self._plan.command_line)
        by_kernel = self._vault.by_kernel(images_only=self._plan.images_only)
        problems = fitness.obstacles(verdict, by_kernel=by_kernel)
        if problems and not self._plan.force:
            raise fitness.unfit(problems, by_kernel=by_kernel)
        if problems:
            self._warnings = [str(problem) for problem in problems]
            log.warning("update: forced, although %s", "; ".join(self._warnings))

    def _load_kernel(self) -> None:
        assert self._plan is not None
        if self._plan.kernel is None:
            return
        initrd = None if self._plan.initrd is None else self._plan.initrd.fileno()
        self._vault.kernel.load(self._plan.kernel.fileno(), initrd, self._plan.command_line)

    async def _announce(self) -> None:
        assert self._plan is not None
        self._is_announced = True
        if self.machine.phase is Phase.PREPARING:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._plan.timeout, self._time_is_up)
        for key in self._mailboxes:
            self._tell(key, "prepare")

    def _time_is_up(self) -> None:
        if self.machine.phase is Phase.PREPARING:
            self._perform(self.machine.deadline())

    async def _seal(self) -> None:
        self._cancel_deadline()
        assert self._plan is not None
        await self._vault.seal_all(self._go_on, images_only=self._plan.images_only)
        self._loads = [load for one in self._vault.sealed for load in sums(one.box, one.loads)]
        if self.machine.phase is Phase.SEALING:
            self._perform(self.machine.sealed())

    def _go_on(self, detail: str) -> bool:
        self._detail = detail
        self._notify()
        return self.machine.phase is Phase.SEALING

    async def _commit(self) -> None:
        assert self._plan is not None
        kernel = self._vault.kernel
        await self._vault.commit(
            self._load_and_tell,
            kernel.reboot if self._plan.kernel is None else kernel.jump,
            save_again=self._plan.save_again,
        )

    def _load_and_tell(self) -> None:
        self._load_kernel()
        kernel = self._vault.kernel
        self._phases["leaving"] = kernel.realtime()
        self.last.leaves(kernel.incarnation(), self._phases, self._vault.sealed)

    async def _unload(self) -> None:
        if not self._has_loaded:  # what somebody else has loaded stays
            return
        await asyncio.to_thread(self._vault.kernel.unload)
        self._has_loaded = False
        self._vault.note_next_kernel(loaded=False)

    async def _recall(self) -> None:
        for key in self._mailboxes:
            self._tell(key, "aborted")

    async def _finish(self) -> None:
        self._cancel_deadline()
        try:
            if self.machine.failure is not None and self._is_announced:
                incarnation = self._vault.kernel.incarnation()
                reason = str(self.machine.failure)
                await asyncio.to_thread(self.last.fails, incarnation, dict(self._phases), reason)
        finally:
            self._discard_plan()
            self.machine.finished()
            self._notify()

    def _discard_plan(self) -> None:
        if self._plan is not None:
            self._discard(self._plan.images)
            self._plan = None

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    async def close(self) -> None:
        """Call off what runs, for the end of the daemon.

        A jump can end the daemon itself, where systemd carries it out. So that is not called off, and nothing is undone:
        what is saved crosses.
        """
        with contextlib.suppress(NoUpdate, UpdateInProgress):
            self.abort()
        if self.machine.phase is Phase.COMMITTING:
            self._vault.kernel.give_way()
        if self._work is not None:
            await self._work
        self._discard_plan()


def sums(key: BoxKey, loads: list[seal.Load]) -> Iterator[Load]:
    """Yield how much of a box each carrier takes."""
    for carrier in sorted({load.carrier for load in loads}):
        mine = [load.size for load in loads if load.carrier == carrier]
        yield Load(
            box=key.name, owner=key.owner, carrier=carrier, entries=len(mine), bytes=sum(mine)
        )
