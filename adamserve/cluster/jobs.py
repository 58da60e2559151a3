"""What the controller knows of its jobs."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adamserve import optim
from adamserve.errors import InvalidArgument, LimitExceeded, NotFound
from adamserve.job import JobConfig
from adamserve.observe.state import JobState, Rollback
from adamserve.regret import Account, Loss
from adamserve.shard import consistency
from adamserve.shard.events import EVENTS_KEPT, Event, merged
from adamserve.shard.statistics import ShardStatistics
from adamserve.values import Stamp

NUMBERS_KEPT = 64
"""Numbers that a job may report by name, beside its losses."""

RATE_S = 5.0
"""Time that a job's updates in a second are counted over."""

Mark = tuple[float, int]
"""A moment in seconds, and the slowest shard's clock then."""


def updates_per_s(marks: Sequence[Mark]) -> float | None:
    """Updates of the slowest shard in a second, from the first mark to the last; None where that is no time.

    A restore takes a clock back: then only what came after it counts.
    """
    falls = [i for i in range(1, len(marks)) if marks[i][1] < marks[i - 1][1]]
    since = marks[falls[-1] :] if falls else marks
    seconds = since[-1][0] - since[0][0] if since else 0.0
    return (since[-1][1] - since[0][1]) / seconds if seconds > 0 else None


@dataclass(slots=True, eq=False)
class Job:
    """One job; its table's lock guards it.

    Attributes:
        config: what it is.
        folder: where its checkpoints are; None where none are kept.
        began: the incarnation of each shard, and the clock at which it began.
        seen: what each shard told last.
        checkpoint, checkpoint_seconds: number of the newest checkpoint (0: none), and how long it took.
        written_at, written_clocks: when it was written, and what it holds.
        tried_at: when one was last begun.
        lost: shards that do not hold the job any more, and not yet again.
        late_at: when a restore last failed.
        failed: why the job cannot go on.
        marks: the slowest shard's clock in the last `RATE_S`.
        numbers: what was reported of it last, by name.
        past: events of shards that have died since.
    """

    config: JobConfig
    folder: Path | None
    began: list[Stamp]
    checkpoint: int = 0
    written_at: float = 0.0
    seen: list[ShardStatistics | None] = field(init=False)
    checkpoint_seconds: float | None = None
    written_clocks: tuple[int, ...] = field(init=False)
    tried_at: float = 0.0
    lost: set[int] = field(default_factory=set)
    late_at: float = 0.0
    failed: str = ""
    clock_skew: int | None = None
    marks: tuple[Mark, ...] = ()
    account: Account = field(default_factory=Account)
    numbers: dict[str, float] = field(default_factory=dict)
    rollbacks: list[Rollback] = field(default_factory=list)
    past: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen = [None] * len(self.began)
        self.written_clocks = tuple(stamp.clock for stamp in self.began)

    @property
    def statistics(self) -> tuple[ShardStatistics, ...]:
        """Of the shards that were seen."""
        return tuple(shard for shard in self.seen if shard is not None)

    @property
    def unsaved_updates(self) -> int | None:
        """Updates since the newest checkpoint, of the shard that has made most."""
        if self.folder is None:
            return None
        clocks = zip(self.seen, self.written_clocks, strict=True)
        return max((max(0, seen.stamp.clock - at) for seen, at in clocks if seen is not None), default=None)

    @property
    def moved(self) -> bool:
        """Whether some shard has another clock than in the newest checkpoint."""
        return tuple(shard.stamp.clock for shard in self.statistics) != self.written_clocks

    def note(self, rollback: Rollback) -> None:
        """A shard holds the job again."""
        seen = self.seen[rollback.shard]
        self.past = [*self.past, *(seen.events if seen is not None else ())][-EVENTS_KEPT:]
        self.began[rollback.shard] = Stamp(rollback.incarnation, rollback.clock_after)
        self.lost.discard(rollback.shard)
        self.rollbacks.append(rollback)

    def report(self, losses: Sequence[Loss], numbers: Mapping[str, float]) -> None:
        """Note training losses, and the latest value of each of some other numbers.

        Raises:
            InvalidArgument: one of them is not finite; the others are noted.
            LimitExceeded: the job would have more than `NUMBERS_KEPT` other numbers, and none is noted.
        """
        refused: InvalidArgument | None = None
        for loss in losses:
            try:
                self.account.add(*loss)
            except InvalidArgument as error:
                refused = refused or error
        if len(self.numbers.keys() | numbers.keys()) > NUMBERS_KEPT:
            raise LimitExceeded(f"a job has at most {NUMBERS_KEPT}", field="numbers")
        for key, number in numbers.items():
            if math.isfinite(number):
                self.numbers[key] = number
            else:
                refused = refused or InvalidArgument(f"must be finite, got {number!r}", field=key)
        if refused is not None:
            raise refused


def state_of(job: Job, dead: Mapping[int, str], now: float) -> JobState:
    """How a job stands; `dead` are the shards whose process is gone."""
    shards, account, rule = job.statistics, job.account, optim.from_dict(job.config.rule)
    events = [*job.past, *(r.event() for r in job.rollbacks), *(e for shard in shards for e in shard.events)]
    return JobState(
        job=job.config.name,
        failed=job.failed,
        consistency=str(consistency.from_dict(job.config.consistency)),
        rule=type(rule).__name__,
        rate=rule.rate(max(1, min((shard.stamp.clock for shard in shards), default=1))),
        loss=account.loss,
        best_loss=account.best,
        losses_not_finite=account.not_finite,
        regret=account.regret if account.steps else None,
        regret_steps=account.steps,
        numbers=dict(job.numbers),
        checkpoint=job.checkpoint,
        checkpoint_age_s=now - job.written_at if job.folder is not None else None,
        checkpoint_seconds=job.checkpoint_seconds,
        unsaved_updates=job.unsaved_updates,
        clock_skew=job.clock_skew,
        updates_per_s=updates_per_s(job.marks),
        down=tuple(sorted({*dead, *job.lost})),
        rollbacks=tuple(job.rollbacks),
        shards=shards,
        events=merged(events),
    )


class JobTable:
    """The jobs of a service, by name.

    Attributes:
        now: the clock that intervals are measured by, in seconds.
        lock: guards the jobs, and who the shards are. Held for moments.
        opening: held while shards open or drop jobs, which may take long, and while a checkpoint is committed. Taken
            before `lock`.
        writing: held while a checkpoint is written. Taken before `opening`.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.lock = threading.RLock()
        self.opening = threading.Lock()
        self.writing = threading.Lock()
        self._jobs: dict[str, Job] = {}

    def __iter__(self) -> Iterator[Job]:
        """The jobs that there are at this moment."""
        with self.lock:
            return iter(list(self._jobs.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._jobs

    def check_held(self, job: Job) -> None:
        """Raise `NotFound` unless it is this job still: not deleted, nor another one of its name."""
        if self._jobs.get(job.config.name) is not job:
            raise NotFound(f"job {job.config.name!r} was deleted meanwhile", field="job")

    def get(self, name: str) -> Job:
        """A job.

        Raises:
            NotFound: there is none of that name.
        """
        with self.lock:
            job = self._jobs.get(name)
            if job is None:
                there = f"it has {', '.join(self._jobs) or 'none'}"
                raise NotFound(f"the service has no job {name!r}", field="job", fix=there)
            return job

    def add(self, job: Job) -> None:
        """Take a job up."""
        with self.lock:
            self._jobs[job.config.name] = job

    def remove(self, name: str) -> None:
        """Forget a job, if there is one."""
        with self.lock:
            self._jobs.pop(name, None)

    def see(self, statistics: Sequence[Mapping[str, ShardStatistics] | None]) -> None:
        """Note what every shard told of its jobs, all asked at once; None for one that did not answer."""
        with self.lock:
            now = self.now()
            for job in self._jobs.values():
                for index, told in enumerate(statistics):
                    if told is not None and job.config.name in told:
                        job.seen[index] = told[job.config.name]
                clocks = [shard.stamp.clock for shard in job.statistics]
                job.clock_skew = None
                if len(clocks) == len(job.seen):
                    job.clock_skew = max(clocks) - min(clocks)
                    recent = [mark for mark in job.marks if mark[0] >= now - RATE_S]
                    job.marks = (*recent, (now, min(clocks)))

    def states(self, dead: Mapping[int, str]) -> list[JobState]:
        """How every job stands, by name."""
        with self.lock:
            return [state_of(self._jobs[name], dead, self.now()) for name in sorted(self._jobs)]
