"""Recording and alerting rules over the metrics of `adamserve.metrics`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

RUNBOOK = "docs/runbook.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A series that is worked out in advance.

    Attributes:
        record: its name: level, metric, operation.
        expr: its query.
    """

    record: str
    expr: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """Something that a person should know.

    Attributes:
        alert: its name; the runbook has a section of this name.
        expr: holds while it is so.
        wait: how long it has to be so, as Prometheus writes times.
        severity: "critical" wakes somebody, "warning" waits for the morning.
        summary, description: what is so, and what it means.
    """

    alert: str
    expr: str
    wait: str
    severity: Literal["critical", "warning"]
    summary: str
    description: str


FAILED = "UNKNOWN|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|DATA_LOSS"
"""gRPC codes that are no fault of the caller's."""

RECORDINGS: tuple[Recording, ...] = (
    Recording(
        record="job:adamserve_pushes_applied:rate1m",
        # Every push reaches every shard: the mean over shards counts it once. A restored shard is a new instance.
        expr='avg by (job) (sum by (job, shard) (rate(adamserve_pushes_total{outcome="APPLIED"}[1m])))',
    ),
    Recording(
        record="job:adamserve_pushes_refused:ratio5m",
        expr=(
            'sum by (job) (rate(adamserve_pushes_total{outcome=~"STALE|INVALID"}[5m]))'
            " / sum by (job) (rate(adamserve_pushes_total[5m]))"
        ),
    ),
    Recording(
        record="job:adamserve_staleness_updates:p99_5m",
        expr="histogram_quantile(0.99, sum by (job, le) (rate(adamserve_staleness_updates_bucket[5m])))",
    ),
    Recording(
        record="job:adamserve_push_seconds:p99_5m",
        expr="histogram_quantile(0.99, sum by (job, le) (rate(adamserve_push_seconds_bucket[5m])))",
    ),
    Recording(
        record="method:adamserve_rpc_failed:ratio5m",
        # "or": a method of which no call ever failed has no series with such a code.
        expr=(
            f'(sum by (method) (rate(adamserve_rpc_handled_total{{code=~"{FAILED}"}}[5m]))'
            " or 0 * sum by (method) (rate(adamserve_rpc_handled_total[5m])))"
            " / sum by (method) (rate(adamserve_rpc_handled_total[5m]))"
        ),
    ),
)

ALERTS: tuple[Alert, ...] = (
    Alert(
        alert="AdamserveNoProgress",
        expr="job:adamserve_pushes_applied:rate1m == 0 and on (job) max by (job) (adamserve_pushers_alive) > 0",
        wait="2m",
        severity="critical",
        summary="Job {{ $labels.job }} applies no pushes",
        description="Pushers are alive, but no update was applied for a minute or more.",
    ),
    Alert(
        alert="AdamserveLossNotFinite",
        expr="max by (job) (increase(adamserve_losses_not_finite_total[5m])) > 0",
        wait="0s",
        severity="critical",
        summary="Job {{ $labels.job }} reports losses that are NaN or infinite",
        description="The training has diverged, or a batch holds bad data. Such losses are refused.",
    ),
    Alert(
        alert="AdamserveRegretNotFalling",
        expr=(
            "adamserve_average_regret >= adamserve_average_regret offset 10m"
            " and on (job) job:adamserve_pushes_applied:rate1m > 0"
        ),
        wait="10m",
        severity="warning",
        summary="The average regret of job {{ $labels.job }} does not fall",
        description='R(T)/T is {{ printf "%.3g" $value }}, no lower than ten minutes ago, while pushes are applied.',
    ),
    Alert(
        alert="AdamserveStalenessHigh",
        expr="job:adamserve_staleness_updates:p99_5m > 64",
        wait="5m",
        severity="warning",
        summary="Pushes of job {{ $labels.job }} are stale",
        description='One push in a hundred is {{ printf "%.0f" $value }} updates old or older when it arrives.',
    ),
    Alert(
        alert="AdamservePushesRefused",
        expr="job:adamserve_pushes_refused:ratio5m > 0.05",
        wait="2m",
        severity="warning",
        summary="Pushes of job {{ $labels.job }} are refused",
        description="{{ $value | humanizePercentage }} of the pushes are stale or invalid.",
    ),
    Alert(
        alert="AdamserveCallsFail",
        expr="method:adamserve_rpc_failed:ratio5m > 0.05",
        wait="2m",
        severity="warning",
        summary="Calls of {{ $labels.method }} fail",
        description="{{ $value | humanizePercentage }} of the calls end with an error that is the service's own.",
    ),
    Alert(
        alert="AdamserveQueueSaturated",
        expr="max by (job, shard) (adamserve_pushes_waiting) >= 48",
        wait="1m",
        severity="warning",
        summary="Shard {{ $labels.shard }} of job {{ $labels.job }} has {{ $value }} pushes waiting",
        description="A shard lets 64 pushes wait at once; further ones queue outside of it.",
    ),
    Alert(
        alert="AdamservePusherSilent",
        expr="max by (job) (adamserve_pushers_silent) > 0",
        wait="15s",
        severity="warning",
        summary="{{ $value }} pushers of job {{ $labels.job }} are silent",
        description="Their leases ran out without their having left: they died, or cannot reach the shards.",
    ),
    Alert(
        alert="AdamserveShardDown",
        expr="adamserve_shard_up == 0",
        wait="15s",
        severity="critical",
        summary="Shard {{ $labels.shard }} of job {{ $labels.job }} is down",
        description="Its process is gone and is not restored yet, or cannot be.",
    ),
    Alert(
        alert="AdamserveTargetDown",
        expr='up{job="adamserve"} == 0',
        wait="30s",
        severity="critical",
        summary="{{ $labels.instance }} ({{ $labels.process }}) does not answer Prometheus",
        description="Its process hangs, or the network between is gone. One that is known to be dead is no target.",
    ),
    Alert(
        alert="AdamserveCheckpointOld",
        expr="adamserve_checkpoint_age_seconds > 600 and on (job) job:adamserve_pushes_applied:rate1m > 0",
        wait="1m",
        severity="warning",
        summary="The last checkpoint of job {{ $labels.job }} is {{ $value | humanizeDuration }} old",
        description="If a shard died now, so much work would be lost.",
    ),
    Alert(
        alert="AdamserveClockSkew",
        # After a rollback a shard stays behind by what it lost; that is no reason to wake anybody.
        expr=(
            "delta(adamserve_clock_skew_updates[5m]) > 100"
            " unless on (job) increase(adamserve_rollbacks_total[10m]) > 0"
        ),
        wait="2m",
        severity="warning",
        summary="The shards of job {{ $labels.job }} drift apart",
        description='Their clocks are {{ printf "%.0f" $value }} updates farther apart than five minutes ago.',
    ),
)


def document() -> dict[str, Any]:
    """The rules as Prometheus reads them from a file."""
    return {
        "groups": [
            {
                "name": "adamserve-recordings",
                "rules": [{"record": rule.record, "expr": rule.expr} for rule in RECORDINGS],
            },
            {
                "name": "adamserve-alerts",
                "rules": [
                    {
                        "alert": rule.alert,
                        "expr": rule.expr,
                        "for": rule.wait,
                        "labels": {"severity": rule.severity},
                        "annotations": {
                            "summary": rule.summary,
                            "description": rule.description,
                            "runbook": f"{RUNBOOK}#{rule.alert.lower()}",
                        },
                    }
                    for rule in ALERTS
                ],
            },
        ]
    }
