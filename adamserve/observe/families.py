"""What there is to watch: every metric, what it means, and which process has it.

A family reads its samples from a value that some process has anyway (a job's status, a shard's statistics); nothing is
computed for it before a scrape. Labels have few values: jobs up to `JOBS_SHOWN`, shards, workers by their number, and
words from fixed lists. A pusher's name is never one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, Literal, TypeVar

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


ShardOfJob = tuple[str, ShardStatistics]
"""A job's name, and one shard of it in the shard's own process."""

WorkerOfJob = tuple[str, int, int, Mapping[str, float]]
"""In a worker's process: a job's name, the worker's number, its steps so far, and the seconds they took by part."""

Source = TypeVar("Source")

Histogram = tuple[Sequence[tuple[str, float]], float]
"""Cumulative counts by upper bound, the last one +Inf; and the sum of what was counted."""

Samples = Iterable[tuple[tuple[str, ...], Any]]
"""Values (numbers, or `Histogram`s) by the labels."""


@dataclass(frozen=True, slots=True)
class Family(Generic[Source]):
    """One metric.

    Attributes:
        name: as Prometheus has it; a counter's ends in _total.
        help: what it means, with its unit.
        labels: their names.
        processes: which processes have it.
        read: its samples, from what such a process has.
        histogram: whether its samples are `Histogram`s.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    processes: tuple[Process, ...]
    read: Callable[[Source], Samples]
    histogram: bool = False

    @property
    def kind(self) -> Literal["counter", "gauge", "histogram"]:
        """Its type."""
        if self.histogram:
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"


def _samples(labels: tuple[str, ...], value: Any) -> Samples:
    """One sample; or one for each key of a mapping, the key being a further label; or none for None."""
    if isinstance(value, Mapping):
        return [((*labels, str(key)), each) for key, each in value.items()]
    return [] if value is None else [(labels, value)]


def _job(name: str, help: str, value: Callable[[JobState], Any], *by: str) -> Family[JobState]:
    def read(job: JobState) -> Samples:
        return _samples((job.job,), value(job))

    return Family(name, help, ("job", *by), ("driver",), read)


def _shard(
    name: str, help: str, value: Callable[[ShardStatistics], Any], *by: str, histogram: bool = False
) -> Family[ShardOfJob]:
    def read(of_job: ShardOfJob) -> Samples:
        job, shard = of_job
        return _samples((job, str(shard.shard)), value(shard))

    return Family(name, help, ("job", "shard", *by), ("shard",), read, histogram)


def _up(job: JobState) -> Mapping[int, float]:
    known = {shard.shard for shard in job.shards} | set(job.down)
    return {shard: float(shard not in job.down) for shard in sorted(known)}


JOB_FAMILIES: tuple[Family[JobState], ...] = (
    _job("adamserve_loss", "Training loss, mean of the last 50 batches.", lambda job: job.loss),
    _job("adamserve_best_loss", "Lowest that the training loss has been.", lambda job: job.best_loss),
    _job(
        "adamserve_losses_not_finite_total",
        "Losses reported as NaN or infinite, and refused.",
        lambda job: job.losses_not_finite,
    ),
    _job("adamserve_regret", "R(T): sum of losses above the comparator's.", lambda job: job.regret),
    _job("adamserve_average_regret", "R(T)/T.", lambda job: job.average_regret),
    _job(
        "adamserve_average_regret_bound",
        "Bound on R(T)/T by Kingma & Ba's Theorem 4.1, its constants measured on the workers' gradients.",
        lambda job: job.numbers.get(BOUND),
    ),
    _job(
        "adamserve_test_accuracy_ratio",
        "Share of the test set classified rightly, at the last evaluation.",
        lambda job: job.numbers.get(ACCURACY),
    ),
    _job(
        "adamserve_learning_rate",
        "The rule's rate at the slowest shard's clock; a push may bring its own.",
        lambda job: {job.rule: job.rate} if job.rule else None,
        "rule",
    ),
    _job(
        "adamserve_shard_up",
        "1 while the shard's process lives, 0 while it is gone or being restored.",
        _up,
        "shard",
    ),
    _job(
        "adamserve_updates_per_second",
        "Updates of the slowest shard in a second, over the last 5 seconds.",
        lambda job: job.updates_per_s,
    ),
    _job(
        "adamserve_clock_skew_updates",
        "Updates between the shard that is farthest ahead and the last one, all asked within one round.",
        lambda job: job.clock_skew,
    ),
    _job(
        "adamserve_rollbacks_total", "Restores of a shard from a checkpoint.", lambda job: len(job.rollbacks)
    ),
    _job("adamserve_checkpoint_age_seconds", "Since the last checkpoint.", lambda job: job.checkpoint_age_s),
    _job(
        "adamserve_checkpoint_duration_seconds",
        "Time that the last checkpoint took to write.",
        lambda job: job.checkpoint_seconds,
    ),
    _job(
        "adamserve_durability_lag_updates",
        "Most updates that a shard has applied since the last checkpoint: what its death would lose.",
        lambda job: job.unsaved_updates,
    ),
)

SHARD_FAMILIES: tuple[Family[ShardOfJob], ...] = (
    _shard(
        "adamserve_pushes_total",
        "Pushes decided, by outcome.",
        lambda shard: {outcome: shard.pushes.get(outcome, 0) for outcome in OUTCOMES},
        "outcome",
    ),
    _shard(
        "adamserve_bytes_total",
        "Gradients taken in and parameters given out.",
        lambda shard: {"in": shard.bytes_in, "out": shard.bytes_out},
        "direction",
    ),
    _shard(
        "adamserve_push_seconds",
        "Time from a push's arrival to its receipt, its wait for a turn included.",
        lambda shard: counted(shard.push_seconds),
        histogram=True,
    ),
    _shard(
        "adamserve_queue_seconds",
        "Time that a push waits for the shard and for its turn.",
        lambda shard: counted(shard.queue_seconds),
        histogram=True,
    ),
    _shard(
        "adamserve_apply_seconds",
        "Time inside the rule, an update each.",
        lambda shard: counted(shard.apply_seconds),
        histogram=True,
    ),
    _shard("adamserve_pushes_waiting", "Pushes that wait for their turn.", lambda shard: shard.waiting),
    _shard(
        "adamserve_staleness_updates",
        "Updates between a push's pull and its arrival.",
        lambda shard: cumulative(shard.staleness),
        histogram=True,
    ),
    _shard("adamserve_clock", "Updates applied.", lambda shard: shard.stamp.clock),
    _shard(
        "adamserve_incarnation",
        "Grows by one each time the shard is restored.",
        lambda shard: shard.stamp.incarnation,
    ),
    _shard(
        "adamserve_gradient_norm",
        "Euclidean norm of the shard's part of a gradient as applied, estimated from up to 4096 elements.",
        lambda shard: shard.seen.gradient_norm if shard.seen else None,
    ),
    _shard(
        "adamserve_update_max_norm",
        "Largest change of a parameter by one update, among up to 4096 of them.",
        lambda shard: shard.seen.step if shard.seen else None,
    ),
    _shard(
        "adamserve_update_max_norm_bound",
        "What the rule bounds that change by, where it has a bound.",
        lambda shard: shard.seen.step_bound if shard.seen else None,
    ),
    _shard("adamserve_state_bytes", "Parameters and slots.", lambda shard: shard.state_bytes),
    _shard(
        "adamserve_pushers_alive",
        "Pushers whose lease runs: workers in the cluster, trainers outside of it.",
        lambda shard: {"worker": len(shard.live) - shard.trainers, "trainer": shard.trainers},
        "kind",
    ),
    _shard(
        "adamserve_pushers_silent",
        "Pushers whose lease ran out in the last ten minutes, and that have not come back.",
        lambda shard: shard.silent,
    ),
    _shard(
        "adamserve_lease_expiries_total",
        "Leases that ran out: a pusher fell silent without leaving.",
        lambda shard: shard.lease_expiries,
    ),
)

WORKER_FAMILIES: tuple[Family[WorkerOfJob], ...] = (
    Family(
        "adamserve_worker_steps_total",
        "Steps made: pull, gradient, push.",
        ("job", "worker"),
        ("worker",),
        lambda worker: _samples((worker[0], str(worker[1])), worker[2]),
    ),
    Family(
        "adamserve_worker_seconds_total",
        "Time that the steps took, by part: pull, compute, push.",
        ("job", "worker", "part"),
        ("worker",),
        lambda worker: _samples((worker[0], str(worker[1])), worker[3]),
    ),
)

RPC_FAMILIES: tuple[Family[Calls], ...] = (
    Family(
        "adamserve_rpc_started_total",
        "Calls that came in, by method.",
        ("carrier", "method"),
        ("driver", "shard"),
        lambda calls: calls.begun().items(),
    ),
    Family(
        "adamserve_rpc_handled_total",
        "Calls that were answered, by method and gRPC status code.",
        ("carrier", "method", "code"),
        ("driver", "shard"),
        lambda calls: calls.answered().items(),
    ),
)

BUILD_INFO: Family[str] = Family(
    "adamserve_build_info",
    "1, with the version of adamserve and the kind of process.",
    ("version", "process"),
    PROCESSES,
    lambda process: [((__version__, process), 1.0)],
)

JOBS: Family[int] = Family(
    "adamserve_jobs",
    "Jobs of the service; the metrics show the first 64.",
    (),
    ("driver",),
    lambda jobs: [((), jobs)],
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
