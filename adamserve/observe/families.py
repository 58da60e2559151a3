"""What there is to watch: every metric, what it means, and which process has it.

A family reads its samples from a value that some process has anyway (a job's status, a shard's statistics); nothing is
computed for it before a scrape. Labels have few values: jobs up to `JOBS_SHOWN`, shards, workers by their number, and
words from fixed lists. A pusher's name is never one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, Literal, TypeVar

from adamserve import __version__
from adamserve.observe.rpc_counts import Calls
from adamserve.observe.state import JobState
from adamserve.shard.durations import Times
from adamserve.shard.statistics import ShardStatistics

STALENESS_BUCKETS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
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
    """One metric; a counter's name ends in _total.

    Attributes:
        help: what it means, with its unit.
        labels: their names.
        processes: which processes have it.
        read: its samples, from what such a process has.
        histogram: whether its samples are `Histogram`s.
    """

    help: str
    labels: tuple[str, ...]
    processes: tuple[Process, ...]
    read: Callable[[Source], Samples]
    histogram: bool = False


def _samples(labels: tuple[str, ...], value: Any) -> Samples:
    """One sample; or one for each key of a mapping, the key being a further label; or none for None."""
    if isinstance(value, Mapping):
        return [((*labels, str(key)), each) for key, each in value.items()]
    return [] if value is None else [(labels, value)]


def _job(help: str, value: Callable[[JobState], Any], *by: str) -> Family[JobState]:
    def read(job: JobState) -> Samples:
        return _samples((job.job,), value(job))

    return Family(help, ("job", *by), ("driver",), read)


def _shard(
    help: str, value: Callable[[ShardStatistics], Any], *by: str, histogram: bool = False
) -> Family[ShardOfJob]:
    def read(of_job: ShardOfJob) -> Samples:
        job, shard = of_job
        return _samples((job, str(shard.shard)), value(shard))

    return Family(help, ("job", "shard", *by), ("shard",), read, histogram)


def _up(job: JobState) -> Mapping[int, float]:
    known = {shard.shard for shard in job.shards} | set(job.down)
    return {shard: float(shard not in job.down) for shard in sorted(known)}


JOB_FAMILIES: Mapping[str, Family[JobState]] = {
    "adamserve_loss": _job("Training loss, mean of the last 50 batches.", lambda job: job.loss),
    "adamserve_best_loss": _job("Lowest that the training loss has been.", lambda job: job.best_loss),
    "adamserve_losses_not_finite_total": _job(
        "Losses reported as NaN or infinite, and refused.", lambda job: job.losses_not_finite
    ),
    "adamserve_regret": _job("R(T): sum of losses above the comparator's.", lambda job: job.regret),
    "adamserve_average_regret": _job("R(T)/T.", lambda job: job.average_regret),
    "adamserve_average_regret_bound": _job(
        "Bound on R(T)/T by Kingma & Ba's Theorem 4.1, its constants measured on the workers' gradients.",
        lambda job: job.numbers.get(BOUND),
    ),
    "adamserve_test_accuracy_ratio": _job(
        "Share of the test set classified rightly, at the last evaluation.",
        lambda job: job.numbers.get(ACCURACY),
    ),
    "adamserve_learning_rate": _job(
        "The rule's rate at the slowest shard's clock; a push may bring its own.",
        lambda job: {job.rule: job.rate} if job.rule else None,
        "rule",
    ),
    "adamserve_shard_up": _job(
        "1 while the shard's process lives, 0 while it is gone or being restored.", _up, "shard"
    ),
    "adamserve_updates_per_second": _job(
        "Updates of the slowest shard in a second, over the last 5 seconds.", lambda job: job.updates_per_s
    ),
    "adamserve_clock_skew_updates": _job(
        "Updates between the shard that is farthest ahead and the last one, all asked within one round.",
        lambda job: job.clock_skew,
    ),
    "adamserve_rollbacks_total": _job(
        "Restores of a shard from a checkpoint.", lambda job: len(job.rollbacks)
    ),
    "adamserve_checkpoint_age_seconds": _job("Since the last checkpoint.", lambda job: job.checkpoint_age_s),
    "adamserve_checkpoint_duration_seconds": _job(
        "Time that the last checkpoint took to write.", lambda job: job.checkpoint_seconds
    ),
    "adamserve_durability_lag_updates": _job(
        "Most updates that a shard has applied since the last checkpoint: what its death would lose.",
        lambda job: job.unsaved_updates,
    ),
}

SHARD_FAMILIES: Mapping[str, Family[ShardOfJob]] = {
    "adamserve_pushes_total": _shard(
        "Pushes decided, by outcome.",
        lambda shard: {outcome: shard.pushes.get(outcome, 0) for outcome in OUTCOMES},
        "outcome",
    ),
    "adamserve_bytes_total": _shard(
        "Gradients taken in and parameters given out.",
        lambda shard: {"in": shard.bytes_in, "out": shard.bytes_out},
        "direction",
    ),
    "adamserve_push_seconds": _shard(
        "Time from a push's arrival to its receipt, its wait for a turn included.",
        lambda shard: counted(shard.push_seconds),
        histogram=True,
    ),
    "adamserve_queue_seconds": _shard(
        "Time that a push waits for the shard and for its turn.",
        lambda shard: counted(shard.queue_seconds),
        histogram=True,
    ),
    "adamserve_apply_seconds": _shard(
        "Time inside the rule, an update each.", lambda shard: counted(shard.apply_seconds), histogram=True
    ),
    "adamserve_pushes_waiting": _shard("Pushes that wait for their turn.", lambda shard: shard.waiting),
    "adamserve_staleness_updates": _shard(
        "Updates between a push's pull and its arrival.",
        lambda shard: cumulative(shard.staleness),
        histogram=True,
    ),
    "adamserve_clock": _shard("Updates applied.", lambda shard: shard.stamp.clock),
    "adamserve_incarnation": _shard(
        "Grows by one each time the shard is restored.", lambda shard: shard.stamp.incarnation
    ),
    "adamserve_gradient_norm": _shard(
        "Euclidean norm of the shard's part of a gradient as applied, estimated from up to 4096 elements.",
        lambda shard: shard.seen.gradient_norm if shard.seen else None,
    ),
    "adamserve_update_max_norm": _shard(
        "Largest change of a parameter by one update, among up to 4096 of them.",
        lambda shard: shard.seen.step if shard.seen else None,
    ),
    "adamserve_update_max_norm_bound": _shard(
        "What the rule bounds that change by, where it has a bound.",
        lambda shard: shard.seen.step_bound if shard.seen else None,
    ),
    "adamserve_state_bytes": _shard("Parameters and slots.", lambda shard: shard.state_bytes),
    "adamserve_pushers_alive": _shard(
        "Pushers whose lease runs: workers in the cluster, trainers outside of it.",
        lambda shard: {"worker": len(shard.live) - shard.trainers, "trainer": shard.trainers},
        "kind",
    ),
    "adamserve_pushers_silent": _shard(
        "Pushers whose lease ran out in the last ten minutes, and that have not come back.",
        lambda shard: shard.silent,
    ),
    "adamserve_lease_expiries_total": _shard(
        "Leases that ran out: a pusher fell silent without leaving.", lambda shard: shard.lease_expiries
    ),
}

WORKER_FAMILIES: Mapping[str, Family[WorkerOfJob]] = {
    "adamserve_worker_steps_total": Family(
        "Steps made: pull, gradient, push.",
        ("job", "worker"),
        ("worker",),
        lambda worker: _samples((worker[0], str(worker[1])), worker[2]),
    ),
    "adamserve_worker_seconds_total": Family(
        "Time that the steps took, by part: pull, compute, push.",
        ("job", "worker", "part"),
        ("worker",),
        lambda worker: _samples((worker[0], str(worker[1])), worker[3]),
    ),
}

RPC_FAMILIES: Mapping[str, Family[Calls]] = {
    "adamserve_rpc_started_total": Family(
        "Calls that came in, by method.",
        ("carrier", "method"),
        ("driver", "shard"),
        lambda calls: calls.begun().items(),
    ),
    "adamserve_rpc_handled_total": Family(
        "Calls that were answered, by method and gRPC status code.",
        ("carrier", "method", "code"),
        ("driver", "shard"),
        lambda calls: calls.answered().items(),
    ),
}

JOBS: Mapping[str, Family[int]] = {
    "adamserve_jobs": Family(
        "Jobs of the service; the metrics show the first 64.", (), ("driver",), lambda jobs: [((), jobs)]
    )
}

BUILD_INFO: Mapping[str, Family[str]] = {
    "adamserve_build_info": Family(
        "1, with the version of adamserve and the kind of process.",
        ("version", "process"),
        PROCESSES,
        lambda process: [((__version__, process), 1.0)],
    )
}

FAMILIES: Mapping[str, Family[Any]] = {
    **JOB_FAMILIES,
    **SHARD_FAMILIES,
    **WORKER_FAMILIES,
    **RPC_FAMILIES,
    **JOBS,
    **BUILD_INFO,
}
"""Every metric, by its name."""


def kind_of(name: str) -> Literal["counter", "gauge", "histogram"]:
    """A metric's type."""
    if FAMILIES[name].histogram:
        return "histogram"
    return "counter" if name.endswith("_total") else "gauge"


def cumulative(counts: Mapping[int, int]) -> Histogram:
    """Cumulative histogram buckets and the sum, from exact counts by value."""
    between = [0] * (len(STALENESS_BUCKETS) + 1)
    for value, n in counts.items():
        between[bisect_left(STALENESS_BUCKETS, value)] += n
    total = float(sum(value * n for value, n in counts.items()))
    return counted(Times(STALENESS_BUCKETS, tuple(between), total))


def counted(times: Times) -> Histogram:
    """Cumulative histogram buckets and the sum, from counts between the bounds and above them."""
    names = [*map(str, times.bounds), "+Inf"]
    return list(zip(names, map(float, accumulate(times.counts)), strict=True)), times.total
