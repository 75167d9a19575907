"""The live update as a sans-IO state machine: events in, actions out.

The rules, before the code:

* One update at a time. The next kernel is loaded first, because that can fail for many reasons and costs nothing.
* Then every subscriber hears *prepare*, does its last writing and answers *ready*. One that goes away no longer counts.
  One that comes meanwhile is told at once, and counts.
* The deadline aborts, unless the one who began the update said that it should proceed without the missing.
* Then all boxes are sealed, and the jump is committed. A failure on the way, or an abort, undoes what was done so far
  and in the reverse order: thaw, unload, tell the subscribers.
* Once committing, an abort comes too late and is refused; a jump that fails is undone like any other failure.

    IDLE -begin-> LOADING -loaded-> PREPARING -(all ready | deadline)-> SEALING -sealed-> COMMITTING -> (gone)
      ^              | abort, failed    | abort, failed, deadline          | abort, failed    | failed
      `--finished-- UNDOING <-----------+----------------------------------+------------------'

An illegal event raises and changes nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from fdbox.errors import FdboxError, NoUpdate, UpdateAborted, UpdateInProgress


class Phase(enum.Enum):
    """Where the update stands."""

    IDLE = "idle"
    LOADING = "loading"
    PREPARING = "preparing"
    SEALING = "sealing"
    COMMITTING = "committing"
    UNDOING = "undoing"


class Action(enum.Enum):
    """What the shell has to do next."""

    LOAD = "load the next kernel"
    ANNOUNCE = "tell every subscriber to prepare, and set the deadline"
    SEAL = "seal every box"
    COMMIT = "leave the index for the next incarnation and jump"
    THAW = "unseal what this update sealed"
    UNLOAD = "unload the next kernel"
    RECALL = "tell every subscriber that the update was called off"
    FINISH = "tell the one who began it how it ended"


#: What undoes each phase, in order. The one who began hears last, when everything is as it was.
UNDO: dict[Phase, tuple[Action, ...]] = {
    Phase.LOADING: (Action.UNLOAD, Action.FINISH),
    Phase.PREPARING: (Action.UNLOAD, Action.RECALL, Action.FINISH),
    Phase.SEALING: (Action.THAW, Action.UNLOAD, Action.RECALL, Action.FINISH),
    Phase.COMMITTING: (Action.THAW, Action.UNLOAD, Action.RECALL, Action.FINISH),
}


@dataclass(slots=True)
class Update:
    """The state of the one update there can be."""

    phase: Phase = Phase.IDLE
    proceed_at_deadline: bool = False
    dry_run: bool = False
    failure: FdboxError | None = None
    subscribers: dict[str, str] = field(default_factory=dict)
    _missing: set[str] = field(default_factory=set)

    @property
    def waiting(self) -> list[str]:
        """The names of the subscribers that are not ready, sorted."""
        return sorted(self.subscribers[key] for key in self._missing)

    def begin(self, *, proceed_at_deadline: bool = False, dry_run: bool = False) -> list[Action]:
        """Start an update; a dry run loads the kernel, takes it back, and touches nobody."""
        if self.phase is not Phase.IDLE:
            raise UpdateInProgress(f"an update is {self.phase.value}")
        self.phase = Phase.LOADING
        self.proceed_at_deadline, self.dry_run, self.failure = proceed_at_deadline, dry_run, None
        return [Action.LOAD]

    def loaded(self) -> list[Action]:
        """The next kernel is loaded."""
        self._require(Phase.LOADING)
        if self.dry_run:
            self.phase = Phase.UNDOING
            return [Action.UNLOAD, Action.FINISH]
        self.phase = Phase.PREPARING
        self._missing = set(self.subscribers)
        return [Action.ANNOUNCE, *self._seal_when_ready()]

    def subscribed(self, key: str, name: str) -> bool:
        """Count a new subscriber; return whether it must be told to prepare at once."""
        self.subscribers[key] = name
        if self.phase is Phase.PREPARING:
            self._missing.add(key)
            return True
        return False

    def ready(self, key: str) -> list[Action]:
        """One subscriber has done its last writing; saying it twice is harmless."""
        if key not in self.subscribers:
            raise NoUpdate("no such subscriber", remedy="subscribe first; the key is in the reply")
        self._require(Phase.PREPARING)
        self._missing.discard(key)
        return self._seal_when_ready()

    def gone(self, key: str) -> list[Action]:
        """A subscriber's connection ended; it is not waited for."""
        self.subscribers.pop(key, None)
        was_missing = key in self._missing
        self._missing.discard(key)
        return self._seal_when_ready() if was_missing and self.phase is Phase.PREPARING else []

    def deadline(self) -> list[Action]:
        """Time is up for the subscribers."""
        self._require(Phase.PREPARING)
        if self.proceed_at_deadline:
            self._missing.clear()
            return self._seal_when_ready()
        names = ", ".join(self.waiting)
        return self._undo(
            UpdateAborted(
                f"the deadline passed and these were not ready: {names}",
                remedy="give them more time (--timeout), or go on without them (--proceed)",
            )
        )

    def sealed(self) -> list[Action]:
        """Every box is sealed."""
        self._require(Phase.SEALING)
        self.phase = Phase.COMMITTING
        return [Action.COMMIT]

    def failed(self, error: FdboxError) -> list[Action]:
        """A step failed; everything so far is undone."""
        self._require_running()
        return self._undo(error)

    def abort(self) -> list[Action]:
        """Somebody calls the update off."""
        self._require_running()
        if self.phase is Phase.COMMITTING:
            raise UpdateInProgress("too late to abort: the jump is under way")
        return self._undo(UpdateAborted("the update was called off"))

    def finished(self) -> None:
        """Everything is undone, and the one who began has heard."""
        self._require(Phase.UNDOING)
        self.phase = Phase.IDLE

    def _require_running(self) -> None:
        if self.phase in (Phase.IDLE, Phase.UNDOING):
            raise NoUpdate("no update is running, or it is being undone already")

    def _require(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise NoUpdate(f"not now: the update is {self.phase.value}, not {phase.value}")

    def _seal_when_ready(self) -> list[Action]:
        if self._missing:
            return []
        self.phase = Phase.SEALING
        return [Action.SEAL]

    def _undo(self, error: FdboxError) -> list[Action]:
        actions = list(UNDO[self.phase])
        self.failure = error
        self.phase = Phase.UNDOING
        self._missing.clear()
        return actions
