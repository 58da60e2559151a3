"""The controller's watch over shards and jobs: it looks, decides by `healing.plan`, and acts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from adamserve.cluster.checkpointer import Checkpointer
from adamserve.cluster.config import CALL_TIMEOUT_S
from adamserve.cluster.healer import Healer
from adamserve.cluster.healing import Action, GiveUp, Replace, Restore, Write, plan
from adamserve.cluster.jobs import JobTable
from adamserve.cluster.shards import Shards
from adamserve.errors import AdamServeError

log = logging.getLogger("adamserve.service")


class Watch:
    """Looks at the shards again and again, and does what has to be done.

    Args:
        now: the clock that the plan goes by, in seconds.
    """

    def __init__(
        self, table: JobTable, shards: Shards, checkpointer: Checkpointer, now: Callable[[], float]
    ) -> None:
        self._table = table
        self._shards = shards
        self._healer = Healer(table, shards, now)
        self._checkpointer = checkpointer
        self._now = now
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, every_s: float) -> None:
        """Call `step` from a thread of its own."""

        def run() -> None:
            while not self._stopping.wait(every_s):
                self.step()

        self._thread = threading.Thread(target=run, name="adamserve-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End that thread, after the step under way."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=CALL_TIMEOUT_S)

    def step(self) -> list[Action]:
        """Look at every shard, and do what has to be done: heal the dead, write the checkpoints that are due.

        One thread at a time calls this. What goes wrong is logged, and tried again by a later call.

        Returns:
            What was tried.
        """
        self._attempt(partial(self._shards.look, self._table.see), "looking at the shards")
        with self._table.lock:
            actions = plan(self._now(), self._shards.dead, [job.standing() for job in self._table])
        for action in actions:
            self._attempt(partial(self._act, action), str(action))
        return actions

    def _act(self, action: Action) -> None:
        match action:
            case GiveUp(name, reason):
                self._healer.give_up(name, reason)
            case Replace(shard, reason):
                self._healer.replace(shard, reason)
            case Restore(name, shard, reason):
                self._healer.restore(name, shard, reason)
            case Write(name):
                self._checkpointer.write(name)

    def _attempt(self, act: Callable[[], object], what: str) -> None:
        """The watcher must outlive whatever goes wrong once: log it and go on."""
        try:
            act()
        except (AdamServeError, OSError) as error:
            log.error("%s failed: %s", what, error)
        except Exception:
            log.exception("%s failed", what)
