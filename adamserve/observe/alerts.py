"""Recording and alerting rules over the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

RUNBOOK = "docs/runbook.md"


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a person should know.

    Attributes:
        severity: "critical" wakes somebody, "warning" waits for the morning.
        expr: holds while it is so.
        wait: how long it has to be so, as Prometheus writes times.
        summary, description: what is so, and what it means.
    """

    severity: Literal["critical", "warning"]
    expr: str
    wait: str
    summary: str
    description: str


_critical, _warning = partial(Alert, "critical"), partial(Alert, "warning")

FAILED = "UNKNOWN|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|DATA_LOSS"
"""gRPC codes that are no fault of the caller's."""

RECORDINGS = {
    # Every push reaches every shard: the mean over shards counts it once. A restored shard is a new instance.
    "job:adamserve_pushes_applied:rate1m": (
        'avg by (job) (sum by (job, shard) (rate(adamserve_pushes_total{outcome="APPLIED"}[1m])))'
    ),
    "job:adamserve_pushes_refused:ratio5m": (
        'sum by (job) (rate(adamserve_pushes_total{outcome=~"STALE|INVALID"}[5m]))'
        " / sum by (job) (rate(adamserve_pushes_total[5m]))"
    ),
    "job:adamserve_staleness_updates:p99_5m": (
        "histogram_quantile(0.99, sum by (job, le) (rate(adamserve_staleness_updates_bucket[5m])))"
    ),
    "job:adamserve_push_seconds:p99_5m": (
        "histogram_quantile(0.99, sum by (job, le) (rate(adamserve_push_seconds_bucket[5m])))"
    ),
    # "or": a method of which no call ever failed has no series with such a code.
    "method:adamserve_rpc_failed:ratio5m": (
        f'(sum by (method) (rate(adamserve_rpc_handled_total{{code=~"{FAILED}"}}[5m]))'
        " or 0 * sum by (method) (rate(adamserve_rpc_handled_total[5m])))"
        " / sum by (method) (rate(adamserve_rpc_handled_total[5m]))"
    ),
}
"""Queries that are worked out in advance, by the name of the series: level, metric, operation."""

ALERTS = {
    "AdamserveNoProgress": _critical(
        "job:adamserve_pushes_applied:rate1m == 0 and on (job) max by (job) (adamserve_pushers_alive) > 0",
        "2m",
        "Job {{ $labels.job }} applies no pushes",
        "Pushers are alive, but no update was applied for a minute or more.",
    ),
    "AdamserveLossNotFinite": _critical(
        "max by (job) (increase(adamserve_losses_not_finite_total[5m])) > 0",
        "0s",
        "Job {{ $labels.job }} reports losses that are NaN or infinite",
        "The training has diverged, or a batch holds bad data. Such losses are refused.",
    ),
    "AdamserveRegretNotFalling": _warning(
        (
            "adamserve_average_regret >= adamserve_average_regret offset 10m"
            " and on (job) job:adamserve_pushes_applied:rate1m > 0"
        ),
        "10m",
        "The average regret of job {{ $labels.job }} does not fall",
        'R(T)/T is {{ printf "%.3g" $value }}, no lower than ten minutes ago, while pushes are applied.',
    ),
    "AdamserveStalenessHigh": _warning(
        "job:adamserve_staleness_updates:p99_5m > 64",
        "5m",
        "Pushes of job {{ $labels.job }} are stale",
        'One push in a hundred is {{ printf "%.0f" $value }} updates old or older when it arrives.',
    ),
    "AdamservePushesRefused": _warning(
        "job:adamserve_pushes_refused:ratio5m > 0.05",
        "2m",
        "Pushes of job {{ $labels.job }} are refused",
        "{{ $value | humanizePercentage }} of the pushes are stale or invalid.",
    ),
    "AdamserveCallsFail": _warning(
        "method:adamserve_rpc_failed:ratio5m > 0.05",
        "2m",
        "Calls of {{ $labels.method }} fail",
        "{{ $value | humanizePercentage }} of the calls end with an error that is the service's own.",
    ),
    "AdamserveQueueSaturated": _warning(
        "max by (job, shard) (adamserve_pushes_waiting) >= 48",
        "1m",
        "Shard {{ $labels.shard }} of job {{ $labels.job }} has {{ $value }} pushes waiting",
        "A shard lets 64 pushes wait at once; further ones queue outside of it.",
    ),
    "AdamservePusherSilent": _warning(
        "max by (job) (adamserve_pushers_silent) > 0",
        "15s",
        "{{ $value }} pushers of job {{ $labels.job }} are silent",
        "Their leases ran out without their having left: they died, or cannot reach the shards.",
    ),
    "AdamserveShardDown": _critical(
        "adamserve_shard_up == 0",
        "15s",
        "Shard {{ $labels.shard }} of job {{ $labels.job }} is down",
        "Its process is gone and is not restored yet, or cannot be.",
    ),
    "AdamserveTargetDown": _critical(
        'up{job="adamserve"} == 0',
        "30s",
        "{{ $labels.instance }} ({{ $labels.process }}) does not answer Prometheus",
        "The process is hung or unreachable. Dead processes are removed from discovery.",
    ),
    "AdamserveCheckpointOld": _warning(
        "adamserve_checkpoint_age_seconds > 600 and on (job) job:adamserve_pushes_applied:rate1m > 0",
        "1m",
        "The last checkpoint of job {{ $labels.job }} is {{ $value | humanizeDuration }} old",
        "If a shard died now, so much work would be lost.",
    ),
    "AdamserveClockSkew": _warning(
        # After a rollback a shard stays behind by what it lost; that is no reason to wake anybody.
        (
            "delta(adamserve_clock_skew_updates[5m]) > 100"
            " unless on (job) increase(adamserve_rollbacks_total[10m]) > 0"
        ),
        "2m",
        "The shards of job {{ $labels.job }} drift apart",
        'Their clocks are {{ printf "%.0f" $value }} updates farther apart than five minutes ago.',
    ),
}
"""By name; the runbook has a section of each name."""
