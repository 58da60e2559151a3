"""Grafana's dashboards, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

JOB = 'job=~"$job"'
INTERVAL = "$__rate_interval"
WIDTH, HEIGHT = 12, 8
"""Of a panel, in Grafana's grid of 24 columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One of a panel's lines.

    Attributes:
        expr: PromQL, with the dashboard's variables.
        legend: what to call it, with labels in braces.
    """

    expr: str
    legend: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One panel of lines over time.

    Attributes:
        title, text: what it shows, and what to make of it.
        unit: as Grafana names units.
        queries: its lines.
        log: a logarithmic axis.
    """

    title: str
    text: str
    unit: str
    queries: Sequence[Query]
    log: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Dashboard:
    """A page of panels.

    Attributes:
        uid: names its file too.
        title: for people.
        panels: in reading order.
    """

    uid: str
    title: str
    panels: Sequence[Panel]


def _quantiles(metric: str) -> list[Query]:
    buckets = f"sum by (job, le) (rate({metric}_bucket{{{JOB}}}[{INTERVAL}]))"
    return [
        Query(expr=f"histogram_quantile({q / 100:g}, {buckets})", legend=f"{{{{job}}}} p{q}")
        for q in (50, 90, 99)
    ]


def _job(metric: str, legend: str = "{{job}}") -> Query:
    """A metric of jobs."""
    return Query(expr=f"{metric}{{{JOB}}}", legend=legend)


def _shards(metric: str, legend: str = "{{job}} shard {{shard}}") -> Query:
    """A metric of shards; one that was restored is another process, and the same line."""
    return Query(expr=f"max by (job, shard) ({metric}{{{JOB}}})", legend=legend)


LOSS = Panel(
    title="Training loss",
    text="Mean of the last 50 mini-batches, and the lowest that it has been.",
    unit="short",
    log=True,
    queries=[_job("adamserve_loss"), _job("adamserve_best_loss", "{{job}} best")],
)

APPLIED = Panel(
    title="Pushes applied",
    text="Updates a second; every push reaches every shard and is counted once.",
    unit="ops",
    queries=[
        Query(
            expr=(
                f'avg by (job) (sum by (job, shard) (rate(adamserve_pushes_total{{{JOB},outcome="APPLIED"}}'
                f"[{INTERVAL}])))"
            ),
            legend="{{job}}",
        )
    ],
)

OVERVIEW = Dashboard(
    uid="adamserve-overview",
    title="adamserve: overview",
    panels=[
        LOSS,
        APPLIED,
        Panel(
            title="Updates of the slowest shard",
            text="As its clock has moved in the last 5 seconds; in bsp one update takes a push of every pusher.",
            unit="ops",
            queries=[_job("adamserve_updates_per_second")],
        ),
        Panel(
            title="Pushers alive",
            text="Workers in the cluster and trainers outside of it whose lease runs.",
            unit="short",
            queries=[
                Query(
                    expr=f"max by (job, kind) (adamserve_pushers_alive{{{JOB}}})", legend="{{job}} {{kind}}s"
                )
            ],
        ),
        Panel(
            title="Shards up",
            text="1 while a shard's process lives; it drops to 0 while the shard is restored.",
            unit="short",
            queries=[_shards("adamserve_shard_up")],
        ),
        Panel(
            title="Checkpoint age",
            text="Time since the last checkpoint was written.",
            unit="s",
            queries=[_job("adamserve_checkpoint_age_seconds")],
        ),
        Panel(
            title="Updates not in a checkpoint",
            text="What the death of a shard would lose now, at most.",
            unit="short",
            queries=[_job("adamserve_durability_lag_updates")],
        ),
        Panel(
            title="Jobs",
            text="Of every service.",
            unit="short",
            queries=[Query(expr="sum by (instance) (adamserve_jobs)", legend="{{instance}}")],
        ),
        Panel(
            title="Processes",
            text="Those that serve metrics, by kind and version.",
            unit="short",
            queries=[
                Query(
                    expr="count by (process, version) (adamserve_build_info)",
                    legend="{{process}}, adamserve {{version}}",
                )
            ],
        ),
    ],
)

CONVERGENCE = Dashboard(
    uid="adamserve-convergence",
    title="adamserve: convergence and regret",
    panels=[
        LOSS,
        Panel(
            title="Average regret",
            text="R(T)/T of a convex job against its comparator, and Theorem 4.1's bound where it is about the rule.",
            unit="short",
            log=True,
            queries=[
                _job("adamserve_average_regret"),
                _job("adamserve_average_regret_bound", "{{job}} bound"),
            ],
        ),
        Panel(
            title="Regret",
            text="R(T): the sum of losses above the comparator's.",
            unit="short",
            queries=[_job("adamserve_regret")],
        ),
        Panel(
            title="Test accuracy",
            text="At the last evaluation.",
            unit="percentunit",
            queries=[_job("adamserve_test_accuracy_ratio")],
        ),
        Panel(
            title="Rate",
            text="Of the rule, by its schedule.",
            unit="short",
            log=True,
            queries=[_job("adamserve_learning_rate", "{{job}} {{rule}}")],
        ),
        Panel(
            title="Gradient norm",
            text="Euclidean norm of one gradient over all shards, from a sample of its elements; one update a scrape.",
            unit="short",
            log=True,
            queries=[
                Query(
                    expr=f"sqrt(sum by (job) (max by (job, shard) (adamserve_gradient_norm{{{JOB}}}) ^ 2))",
                    legend="{{job}}",
                )
            ],
        ),
        Panel(
            title="Largest step",
            text="Max-norm of one update, from a sample of the parameters, and what the rule bounds it by.",
            unit="short",
            log=True,
            queries=[
                Query(expr=f"max by (job) (adamserve_update_max_norm{{{JOB}}})", legend="{{job}}"),
                Query(
                    expr=f"max by (job) (adamserve_update_max_norm_bound{{{JOB}}})", legend="{{job}} bound"
                ),
            ],
        ),
        Panel(
            title="Losses not finite",
            text="Losses refused because they were NaN or infinite; the training has diverged.",
            unit="short",
            queries=[
                Query(
                    expr=f"increase(adamserve_losses_not_finite_total{{{JOB}}}[{INTERVAL}])",
                    legend="{{job}}",
                )
            ],
        ),
    ],
)

STALENESS = Dashboard(
    uid="adamserve-staleness",
    title="adamserve: staleness and workers",
    panels=[
        Panel(
            title="Staleness",
            text="Updates between a push's pull and its arrival; about workers - 1 when all keep the same pace.",
            unit="short",
            queries=_quantiles("adamserve_staleness_updates"),
        ),
        Panel(
            title="Pushes by outcome",
            text="STALE: too old. INVALID: refused for its content. DUPLICATE: sent again, applied once.",
            unit="ops",
            queries=[
                Query(
                    expr=(
                        "avg by (job, outcome) (sum by (job, shard, outcome)"
                        f" (rate(adamserve_pushes_total{{{JOB}}}[{INTERVAL}])))"
                    ),
                    legend="{{job}} {{outcome}}",
                )
            ],
        ),
        Panel(
            title="Pushers alive, by shard",
            text="All shards see the same pushers; one that sees fewer is cut off from some.",
            unit="short",
            queries=[
                Query(
                    expr=f"sum by (job, shard) (adamserve_pushers_alive{{{JOB}}})",
                    legend="{{job}} shard {{shard}}",
                )
            ],
        ),
        Panel(
            title="Pushers silent",
            text="Those whose lease ran out of late, and how many leases ran out in the interval.",
            unit="short",
            queries=[
                Query(expr=f"max by (job) (adamserve_pushers_silent{{{JOB}}})", legend="{{job}} silent now"),
                Query(
                    expr=f"max by (job) (increase(adamserve_lease_expiries_total{{{JOB}}}[{INTERVAL}]))",
                    legend="{{job}} leases that ran out",
                ),
            ],
        ),
        Panel(
            title="Steps of each worker",
            text="Steps a second; workers of one kind should keep the same pace.",
            unit="ops",
            queries=[
                Query(
                    expr=f"sum by (job, worker) (rate(adamserve_worker_steps_total{{{JOB}}}[{INTERVAL}]))",
                    legend="{{job}} worker {{worker}}",
                )
            ],
        ),
        Panel(
            title="Where the workers' time goes",
            text="Seconds a second of all workers: pulling, computing gradients, pushing.",
            unit="s",
            queries=[
                Query(
                    expr=f"sum by (job, part) (rate(adamserve_worker_seconds_total{{{JOB}}}[{INTERVAL}]))",
                    legend="{{job}} {{part}}",
                )
            ],
        ),
    ],
)

SHARDS = Dashboard(
    uid="adamserve-shards",
    title="adamserve: shards and gRPC",
    panels=[
        Panel(
            title="Push duration",
            text="From arrival to receipt, the wait for a turn included.",
            unit="s",
            log=True,
            queries=_quantiles("adamserve_push_seconds"),
        ),
        Panel(
            title="Queue duration",
            text="Of a push: its wait for the shard, for its round (bsp) or for a pusher that lags (ssp).",
            unit="s",
            log=True,
            queries=_quantiles("adamserve_queue_seconds"),
        ),
        Panel(
            title="Apply duration",
            text="Of an update: the time inside the rule.",
            unit="s",
            log=True,
            queries=_quantiles("adamserve_apply_seconds"),
        ),
        Panel(
            title="Time inside the rule",
            text="Seconds a second: 1 means that the shard does nothing but apply pushes.",
            unit="percentunit",
            queries=[
                Query(
                    expr=f"sum by (job, shard) (rate(adamserve_apply_seconds_sum{{{JOB}}}[{INTERVAL}]))",
                    legend="{{job}} shard {{shard}}",
                )
            ],
        ),
        Panel(
            title="Pushes waiting",
            text="For their round (bsp), or for a pusher that lags (ssp); a shard lets 64 wait.",
            unit="short",
            queries=[_shards("adamserve_pushes_waiting")],
        ),
        Panel(
            title="Traffic",
            text="Gradients in, parameters out.",
            unit="Bps",
            queries=[
                Query(
                    expr=f"sum by (job, direction) (rate(adamserve_bytes_total{{{JOB}}}[{INTERVAL}]))",
                    legend="{{job}} {{direction}}",
                )
            ],
        ),
        Panel(
            title="Clocks",
            text="Updates that each shard has applied.",
            unit="short",
            queries=[_shards("adamserve_clock")],
        ),
        Panel(
            title="Clock skew",
            text="Updates between the shard that is farthest ahead and the last one; what a rollback lost stays in it.",
            unit="short",
            queries=[_job("adamserve_clock_skew_updates")],
        ),
        Panel(
            title="Incarnations and rollbacks",
            text="A shard's incarnation grows by one when it is restored from a checkpoint.",
            unit="short",
            queries=[
                _shards("adamserve_incarnation", "{{job}} shard {{shard}} incarnation"),
                _job("adamserve_rollbacks_total", "{{job}} rollbacks"),
            ],
        ),
        Panel(
            title="State",
            text="Parameters and slots in the shards' memory.",
            unit="bytes",
            queries=[_shards("adamserve_state_bytes")],
        ),
        Panel(
            title="Checkpoint duration",
            text="Time that the last checkpoint took to write, while pushes went on.",
            unit="s",
            queries=[_job("adamserve_checkpoint_duration_seconds")],
        ),
        Panel(
            title="Calls started",
            text="Calls a second that came in from outside the cluster, by method.",
            unit="ops",
            queries=[
                Query(
                    expr=f"sum by (carrier, method) (rate(adamserve_rpc_started_total[{INTERVAL}]))",
                    legend="{{carrier}} {{method}}",
                )
            ],
        ),
        Panel(
            title="Calls handled",
            text="Calls a second that were answered, by status code.",
            unit="ops",
            queries=[
                Query(
                    expr=f"sum by (carrier, code) (rate(adamserve_rpc_handled_total[{INTERVAL}]))",
                    legend="{{carrier}} {{code}}",
                )
            ],
        ),
    ],
)

DASHBOARDS: tuple[Dashboard, ...] = (OVERVIEW, CONVERGENCE, STALENESS, SHARDS)


def document(dashboard: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana reads it from a file."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["adamserve"],
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "schemaVersion": 39,
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "job",
                    "label": "Job",
                    "type": "query",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "query": {"query": "label_values(adamserve_clock, job)", "refId": "job"},
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(dashboard.panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    scale = {"type": "log", "log": 10} if panel.log else {"type": "linear"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": source,
        "gridPos": {
            "x": WIDTH * (number % 2),
            "y": HEIGHT * (number // 2),
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {"scaleDistribution": scale, "showPoints": "never"}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": source,
                "expr": query.expr,
                "legendFormat": query.legend,
            }
            for i, query in enumerate(panel.queries)
        ],
    }
