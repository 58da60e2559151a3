"""What there is to watch: every metric, what it means, and which process has it.

A family reads its samples from a value that some process has anyway (a job's status, a shard's statistics); nothing is
computed for it before a scrape. Labels have few values: jobs up to `JOBS_SHOWN`, shards, workers by their number, and
words from fixed lists. A pusher's name is never one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, Literal, Protocol, TypeVar

from adamserve import __version__
from adamserve.observe.rpc_counts import Calls
from adamserve.observe.state import JobState
from adamserve.shard.durations import Times
from adamserve.shard.statistics import ShardStatistics

STALENESS_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Upper bounds of the staleness histogram, in updates."""

OUTCOMES = ("APPLIED", "DUPLICATE", "STALE", "INVALID")
"""Exported from the start, at 0: a rate over a series that does not exist is nothing, not 0."""

ACCURACY, BOUND = "test_accuracy", "average_regret_bound"
"""Numbers that drivers report by name and that have a metric of their own."""

JOBS_SHOWN = 64
"""Jobs that a process shows, the first ones by name; `adamserve_jobs` counts all."""

Process = Literal["driver", "shard", "worker"]
PROCESSES: tuple[Process, ...] = ("driver", "shard", "worker")
"""The driver is the process that runs `adamserve train` or `adamserve serve`."""


class StepGauge(Protocol):
    """What a worker's process counts of its steps."""

    @property
    def steps(self) -> int:
        """Steps made since the process began."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """What they took, by part."""


WorkerOfJob = tuple[str, int, StepGauge]
"""A job's name, and the number and the gauge of one worker of it in the worker's own process."""

ShardOfJob = tuple[str, ShardStatistics]
"""A job's name, and one shard of it in the shard's own process."""

Source = TypeVar("Source")

Histogram = tuple[Sequence[tuple[str, float]], float]
"""Cumulative counts by upper bound, the last one +Inf; and the sum of what was counted."""

Samples = Iterable[tuple[tuple[str, ...], Any]]
"""Values (numbers, or `Histogram`s) by the labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family(Generic[Source]):
    """One metric.

    Attributes:
        name: as Prometheus has it.
        kind: its type.
        help: what it means, with its unit.
        labels: their names.
        processes: which processes have it.
        read: its samples, from what such a process has.
        word: of a job, its name among the facts that people read; empty where it is not one of them.
        form: how its number is written there.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    processes: tuple[Process, ...]
    read: Callable[[Source], Samples]
    word: str = ""
    form: str = ".4g"


def _job(
    name: str,
    kind: Literal["counter", "gauge"],
    help: str,
    value: Callable[[JobState], float | None],
    *,
    word: str = "",
    form: str = ".4g",
) -> Family[JobState]:
    """One sample a job, or none while there is no value."""

    def read(job: JobState) -> Samples:
        sample = value(job)
        return [] if sample is None else [((job.job,), sample)]

    return Family(
        name=name,
        kind=kind,
        help=help,
        labels=("job",),
        processes=("driver",),
        read=read,
        word=word,
        form=form,
    )


def _up(job: JobState) -> Samples:
    known = {shard.shard for shard in job.shards} | set(job.down)
    return [((job.job, str(shard)), float(shard not in job.down)) for shard in sorted(known)]


JOB_FAMILIES: tuple[Family[JobState], ...] = (
    _job(
        "adamserve_loss",
        "gauge",
        "Training loss, mean of the last 50 batches.",
        lambda job: job.loss,
        word="loss",
    ),
    _job(
        "adamserve_best_loss",
        "gauge",
        "Lowest that the training loss has been.",
        lambda job: job.best_loss,
        word="best loss",
    ),
    _job(
        "adamserve_losses_not_finite_total",
        "counter",
        "Losses reported as NaN or infinite, and refused.",
        lambda job: job.losses_not_finite,
    ),
    _job(
        "adamserve_regret",
        "gauge",
        "R(T): sum of losses above the comparator's.",
        lambda job: job.regret,
    ),
    _job("adamserve_average_regret", "gauge", "R(T)/T.", lambda job: job.average_regret, word="R(T)/T"),
    _job(
        "adamserve_average_regret_bound",
        "gauge",
        "Bound on R(T)/T by Kingma & Ba's Theorem 4.1, its constants measured on the workers' gradients.",
        lambda job: job.numbers.get(BOUND),
    ),
    _job(
        "adamserve_test_accuracy_ratio",
        "gauge",
        "Share of the test set classified rightly, at the last evaluation.",
        lambda job: job.numbers.get(ACCURACY),
        word="test accuracy",
        form=".2%",
    ),
    Family(
        name="adamserve_learning_rate",
        kind="gauge",
        help="The rule's rate at the slowest shard's clock; a push may bring its own.",
        labels=("job", "rule"),
        processes=("driver",),
        read=lambda job: [((job.job, job.rule), job.rate)] if job.rule else [],
    ),
    Family(
        name="adamserve_shard_up",
        kind="gauge",
        help="1 while the shard's process lives, 0 while it is gone or being restored.",
        labels=("job", "shard"),
        processes=("driver",),
        read=_up,
    ),
    _job(
        "adamserve_updates_per_second",
        "gauge",
        "Updates of the slowest shard in a second, over the last 5 seconds.",
        lambda job: job.updates_per_s,
        word="updates/s",
        form=".3g",
    ),
    _job(
        "adamserve_clock_skew_updates",
        "gauge",
        "Updates between the shard that is farthest ahead and the last one, all asked within one round.",
        lambda job: job.clock_skew,
    ),
    _job(
        "adamserve_rollbacks_total",
        "counter",
        "Restores of a shard from a checkpoint.",
        lambda job: len(job.rollbacks),
        word="rollbacks",
        form="d",
    ),
    _job(
        "adamserve_checkpoint_age_seconds",
        "gauge",
        "Since the last checkpoint.",
        lambda job: job.checkpoint_age_s,
    ),
    _job(
        "adamserve_checkpoint_duration_seconds",
        "gauge",
        "Time that the last checkpoint took to write.",
        lambda job: job.checkpoint_seconds,
    ),
    _job(
        "adamserve_durability_lag_updates",
        "gauge",
        "Most updates that a shard has applied since the last checkpoint: what its death would lose.",
        lambda job: job.unsaved_updates,
    ),
)


def _shard(
    name: str,
    kind: Literal["counter", "gauge", "histogram"],
    help: str,
    value: Callable[[ShardStatistics], Any],
) -> Family[ShardOfJob]:
    """One sample a shard of a job, or none while there is no value."""

    def read(of_job: ShardOfJob) -> Samples:
        job, shard = of_job
        sample = value(shard)
        return [] if sample is None else [((job, str(shard.shard)), sample)]

    return Family(name=name, kind=kind, help=help, labels=("job", "shard"), processes=("shard",), read=read)


def _by(
    name: str,
    kind: Literal["counter", "gauge"],
    help: str,
    label: str,
    values: Callable[[ShardStatistics], Mapping[str, float]],
) -> Family[ShardOfJob]:
    """One sample a shard of a job and value of a further label."""

    def read(of_job: ShardOfJob) -> Samples:
        job, shard = of_job
        return [((job, str(shard.shard), key), n) for key, n in values(shard).items()]

    return Family(
        name=name, kind=kind, help=help, labels=("job", "shard", label), processes=("shard",), read=read
    )


SHARD_FAMILIES: tuple[Family[ShardOfJob], ...] = (
    _by(
        "adamserve_pushes_total",
        "counter",
        "Pushes decided, by outcome.",
        "outcome",
        lambda shard: {outcome: shard.pushes.get(outcome, 0) for outcome in OUTCOMES},
    ),
    _by(
        "adamserve_bytes_total",
        "counter",
        "Gradients taken in and parameters given out.",
        "direction",
        lambda shard: {"in": shard.bytes_in, "out": shard.bytes_out},
    ),
    _shard(
        "adamserve_push_seconds",
        "histogram",
        "Time from a push's arrival to its receipt, its wait for a turn included.",
        lambda shard: counted(shard.push_seconds),
    ),
    _shard(
        "adamserve_queue_seconds",
        "histogram",
        "Time that a push waits for the shard and for its turn.",
        lambda shard: counted(shard.queue_seconds),
    ),
    _shard(
        "adamserve_apply_seconds",
        "histogram",
        "Time inside the rule, an update each.",
        lambda shard: counted(shard.apply_seconds),
    ),
    _shard(
        "adamserve_pushes_waiting", "gauge", "Pushes that wait for their turn.", lambda shard: shard.waiting
    ),
    _shard(
        "adamserve_staleness_updates",
        "histogram",
        "Updates between a push's pull and its arrival.",
        lambda shard: cumulative(shard.staleness),
    ),
    _shard("adamserve_clock", "gauge", "Updates applied.", lambda shard: shard.stamp.clock),
    _shard(
        "adamserve_incarnation",
        "gauge",
        "Grows by one each time the shard is restored.",
        lambda shard: shard.stamp.incarnation,
    ),
    _shard(
        "adamserve_gradient_norm",
        "gauge",
        "Euclidean norm of the shard's part of a gradient as applied, estimated from up to 4096 elements.",
        lambda shard: shard.seen.gradient_norm if shard.seen else None,
    ),
    _shard(
        "adamserve_update_max_norm",
        "gauge",
        "Largest change of a parameter by one update, among up to 4096 of them.",
        lambda shard: shard.seen.step if shard.seen else None,
    ),
    _shard(
        "adamserve_update_max_norm_bound",
        "gauge",
        "What the rule bounds that change by, where it has a bound.",
        lambda shard: shard.seen.step_bound if shard.seen else None,
    ),
    _shard("adamserve_state_bytes", "gauge", "Parameters and slots.", lambda shard: shard.state_bytes),
    _by(
        "adamserve_pushers_alive",
        "gauge",
        "Pushers whose lease runs: workers in the cluster, trainers outside of it.",
        "kind",
        lambda shard: {"worker": len(shard.live) - shard.trainers, "trainer": shard.trainers},
    ),
    _shard(
        "adamserve_pushers_silent",
        "gauge",
        "Pushers whose lease ran out in the last ten minutes, and that have not come back.",
        lambda shard: shard.silent,
    ),
    _shard(
        "adamserve_lease_expiries_total",
        "counter",
        "Leases that ran out: a pusher fell silent without leaving.",
        lambda shard: shard.lease_expiries,
    ),
)


def _worker_steps(of_job: WorkerOfJob) -> Samples:
    job, rank, gauge = of_job
    return [((job, str(rank)), gauge.steps)]


def _worker_seconds(of_job: WorkerOfJob) -> Samples:
    job, rank, gauge = of_job
    return [((job, str(rank), part), seconds) for part, seconds in dict(gauge.seconds).items()]


WORKER_FAMILIES: tuple[Family[WorkerOfJob], ...] = (
    Family(
        name="adamserve_worker_steps_total",
        kind="counter",
        help="Steps made: pull, gradient, push.",
        labels=("job", "worker"),
        processes=("worker",),
        read=_worker_steps,
    ),
    Family(
        name="adamserve_worker_seconds_total",
        kind="counter",
        help="Time that the steps took, by part: pull, compute, push.",
        labels=("job", "worker", "part"),
        processes=("worker",),
        read=_worker_seconds,
    ),
)

RPC_FAMILIES: tuple[Family[Calls], ...] = (
    Family(
        name="adamserve_rpc_started_total",
        kind="counter",
        help="Calls that came in, by method.",
        labels=("carrier", "method"),
        processes=("driver", "shard"),
        read=lambda calls: calls.begun().items(),
    ),
    Family(
        name="adamserve_rpc_handled_total",
        kind="counter",
        help="Calls that were answered, by method and gRPC status code.",
        labels=("carrier", "method", "code"),
        processes=("driver", "shard"),
        read=lambda calls: calls.answered().items(),
    ),
)

BUILD_INFO: Family[str] = Family(
    name="adamserve_build_info",
    kind="gauge",
    help="1, with the version of adamserve and the kind of process.",
    labels=("version", "process"),
    processes=PROCESSES,
    read=lambda process: [((__version__, process), 1.0)],
)

JOBS: Family[int] = Family(
    name="adamserve_jobs",
    kind="gauge",
    help="Jobs of the service; the metrics show the first 64.",
    labels=(),
    processes=("driver",),
    read=lambda jobs: [((), jobs)],
)

FAMILIES: tuple[Family[Any], ...] = (
    *JOB_FAMILIES,
    *SHARD_FAMILIES,
    *WORKER_FAMILIES,
    *RPC_FAMILIES,
    JOBS,
    BUILD_INFO,
)
"""Every metric."""


def cumulative(counts: Mapping[int, int]) -> Histogram:
    """Cumulative histogram buckets and the sum, from exact counts by value."""
    buckets = [
        (str(float(bound)), float(sum(n for value, n in counts.items() if value <= bound)))
        for bound in STALENESS_BUCKETS
    ]
    buckets.append(("+Inf", float(sum(counts.values()))))
    return buckets, float(sum(value * n for value, n in counts.items()))


def counted(times: Times) -> Histogram:
    """Cumulative histogram buckets and the sum, from counts between the bounds and above them."""
    names = [*map(str, times.bounds), "+Inf"]
    return list(zip(names, map(float, accumulate(times.counts)), strict=True)), times.total
