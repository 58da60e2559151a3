"""Grafana's dashboards, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

JOB = 'job=~"$job"'
SPAN = "[$__rate_interval]"
WIDTH, HEIGHT = 12, 8
"""Of a panel, in Grafana's grid of 24 columns."""

Queries = Mapping[str, str]
"""A panel's lines: PromQL, with the dashboard's variables, by legend, with labels in braces."""


@dataclass(frozen=True, slots=True)
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
    queries: Queries
    log: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels in reading order; its `uid` names its file too."""

    uid: str
    title: str
    panels: Sequence[Panel]


def _quantiles(metric: str) -> Queries:
    buckets = f"sum by (job, le) (rate({metric}_bucket{{{JOB}}}{SPAN}))"
    return {f"{{{{job}}}} p{q}": f"histogram_quantile({q / 100:g}, {buckets})" for q in (50, 90, 99)}


def _job(metric: str, legend: str = "{{job}}") -> dict[str, str]:
    return {legend: f"{metric}{{{JOB}}}"}


def _max(metric: str, by: str = "job", legend: str = "{{job}}") -> dict[str, str]:
    return {legend: f"max by ({by}) ({metric}{{{JOB}}})"}


def _shards(metric: str, legend: str = "{{job}} shard {{shard}}") -> dict[str, str]:
    """A metric of shards; one that was restored is another process, and the same line."""
    return _max(metric, "job, shard", legend)


def _pushes(legend: str, label: str = "", outcome: str = "") -> dict[str, str]:
    """Pushes a second; each reaches every shard and is counted once."""
    of_shards = f"sum by (job, shard{label}) (rate(adamserve_pushes_total{{{JOB}{outcome}}}{SPAN}))"
    return {legend: f"avg by (job{label}) ({of_shards})"}


def _rate(metric: str, by: str, legend: str) -> dict[str, str]:
    return {legend: f"sum by ({by}) (rate({metric}{{{JOB}}}{SPAN}))"}


LOSS = Panel(
    "Training loss",
    "Mean of the last 50 mini-batches, and the lowest that it has been.",
    "short",
    _job("adamserve_loss") | _job("adamserve_best_loss", "{{job}} best"),
    log=True,
)

OVERVIEW = (
    LOSS,
    Panel(
        "Pushes applied",
        "Updates a second; every push reaches every shard and is counted once.",
        "ops",
        _pushes("{{job}}", outcome=',outcome="APPLIED"'),
    ),
    Panel(
        "Updates of the slowest shard",
        "As its clock has moved in the last 5 seconds; in bsp one update takes a push of every pusher.",
        "ops",
        _job("adamserve_updates_per_second"),
    ),
    Panel(
        "Pushers alive",
        "Workers in the cluster and trainers outside of it whose lease runs.",
        "short",
        _max("adamserve_pushers_alive", "job, kind", "{{job}} {{kind}}s"),
    ),
    Panel(
        "Shards up",
        "1 while a shard's process lives; it drops to 0 while the shard is restored.",
        "short",
        _shards("adamserve_shard_up"),
    ),
    Panel(
        "Checkpoint age",
        "Time since the last checkpoint was written.",
        "s",
        _job("adamserve_checkpoint_age_seconds"),
    ),
    Panel(
        "Updates not in a checkpoint",
        "What the death of a shard would lose now, at most.",
        "short",
        _job("adamserve_durability_lag_updates"),
    ),
    Panel("Jobs", "Of every service.", "short", {"{{instance}}": "sum by (instance) (adamserve_jobs)"}),
    Panel(
        "Processes",
        "Those that serve metrics, by kind and version.",
        "short",
        {"{{process}}, adamserve {{version}}": "count by (process, version) (adamserve_build_info)"},
    ),
)

CONVERGENCE = (
    LOSS,
    Panel(
        "Average regret",
        "R(T)/T of a convex job against its comparator, and Theorem 4.1's bound where it is about the rule.",
        "short",
        _job("adamserve_average_regret") | _job("adamserve_average_regret_bound", "{{job}} bound"),
        log=True,
    ),
    Panel("Regret", "R(T): the sum of losses above the comparator's.", "short", _job("adamserve_regret")),
    Panel("Test accuracy", "At the last evaluation.", "percentunit", _job("adamserve_test_accuracy_ratio")),
    Panel(
        "Rate",
        "Of the rule, by its schedule.",
        "short",
        _job("adamserve_learning_rate", "{{job}} {{rule}}"),
        log=True,
    ),
    Panel(
        "Gradient norm",
        "Euclidean norm of one gradient over all shards, from a sample of its elements; one update a scrape.",
        "short",
        {"{{job}}": f"sqrt(sum by (job) (max by (job, shard) (adamserve_gradient_norm{{{JOB}}}) ^ 2))"},
        log=True,
    ),
    Panel(
        "Largest step",
        "Max-norm of one update, from a sample of the parameters, and what the rule bounds it by.",
        "short",
        _max("adamserve_update_max_norm") | _max("adamserve_update_max_norm_bound", legend="{{job}} bound"),
        log=True,
    ),
    Panel(
        "Losses not finite",
        "Losses refused because they were NaN or infinite; the training has diverged.",
        "short",
        {"{{job}}": f"increase(adamserve_losses_not_finite_total{{{JOB}}}{SPAN})"},
    ),
)

STALENESS = (
    Panel(
        "Staleness",
        "Updates between a push's pull and its arrival; about workers - 1 when all keep the same pace.",
        "short",
        _quantiles("adamserve_staleness_updates"),
    ),
    Panel(
        "Pushes by outcome",
        "STALE: too old. INVALID: refused for its content. DUPLICATE: sent again, applied once.",
        "ops",
        _pushes("{{job}} {{outcome}}", ", outcome"),
    ),
    Panel(
        "Pushers alive, by shard",
        "All shards see the same pushers; one that sees fewer is cut off from some.",
        "short",
        {"{{job}} shard {{shard}}": f"sum by (job, shard) (adamserve_pushers_alive{{{JOB}}})"},
    ),
    Panel(
        "Pushers silent",
        "Those whose lease ran out of late, and how many leases ran out in the interval.",
        "short",
        {
            "{{job}} silent now": f"max by (job) (adamserve_pushers_silent{{{JOB}}})",
            "{{job}} leases that ran out": (
                f"max by (job) (increase(adamserve_lease_expiries_total{{{JOB}}}{SPAN}))"
            ),
        },
    ),
    Panel(
        "Steps of each worker",
        "Steps a second; workers of one kind should keep the same pace.",
        "ops",
        _rate("adamserve_worker_steps_total", "job, worker", "{{job}} worker {{worker}}"),
    ),
    Panel(
        "Where the workers' time goes",
        "Seconds a second of all workers: pulling, computing gradients, pushing.",
        "s",
        _rate("adamserve_worker_seconds_total", "job, part", "{{job}} {{part}}"),
    ),
)

SHARDS = (
    Panel(
        "Push duration",
        "From arrival to receipt, the wait for a turn included.",
        "s",
        _quantiles("adamserve_push_seconds"),
        log=True,
    ),
    Panel(
        "Queue duration",
        "Of a push: its wait for the shard, for its round (bsp) or for a pusher that lags (ssp).",
        "s",
        _quantiles("adamserve_queue_seconds"),
        log=True,
    ),
    Panel(
        "Apply duration",
        "Of an update: the time inside the rule.",
        "s",
        _quantiles("adamserve_apply_seconds"),
        log=True,
    ),
    Panel(
        "Time inside the rule",
        "Seconds a second: 1 means that the shard does nothing but apply pushes.",
        "percentunit",
        _rate("adamserve_apply_seconds_sum", "job, shard", "{{job}} shard {{shard}}"),
    ),
    Panel(
        "Pushes waiting",
        "For their round (bsp), or for a pusher that lags (ssp); a shard lets 64 wait.",
        "short",
        _shards("adamserve_pushes_waiting"),
    ),
    Panel(
        "Traffic",
        "Gradients in, parameters out.",
        "Bps",
        _rate("adamserve_bytes_total", "job, direction", "{{job}} {{direction}}"),
    ),
    Panel("Clocks", "Updates that each shard has applied.", "short", _shards("adamserve_clock")),
    Panel(
        "Clock skew",
        "Updates between the shard that is farthest ahead and the last one; what a rollback lost stays in it.",
        "short",
        _job("adamserve_clock_skew_updates"),
    ),
    Panel(
        "Incarnations and rollbacks",
        "A shard's incarnation grows by one when it is restored from a checkpoint.",
        "short",
        _shards("adamserve_incarnation", "{{job}} shard {{shard}} incarnation")
        | _job("adamserve_rollbacks_total", "{{job}} rollbacks"),
    ),
    Panel("State", "Parameters and slots in the shards' memory.", "bytes", _shards("adamserve_state_bytes")),
    Panel(
        "Checkpoint duration",
        "Time that the last checkpoint took to write, while pushes went on.",
        "s",
        _job("adamserve_checkpoint_duration_seconds"),
    ),
    Panel(
        "Calls started",
        "Calls a second that came in from outside the cluster, by method.",
        "ops",
        {"{{carrier}} {{method}}": f"sum by (carrier, method) (rate(adamserve_rpc_started_total{SPAN}))"},
    ),
    Panel(
        "Calls handled",
        "Calls a second that were answered, by status code.",
        "ops",
        {"{{carrier}} {{code}}": f"sum by (carrier, code) (rate(adamserve_rpc_handled_total{SPAN}))"},
    ),
)

DASHBOARDS = (
    Dashboard("adamserve-overview", "adamserve: overview", OVERVIEW),
    Dashboard("adamserve-convergence", "adamserve: convergence and regret", CONVERGENCE),
    Dashboard("adamserve-staleness", "adamserve: staleness and workers", STALENESS),
    Dashboard("adamserve-shards", "adamserve: shards and gRPC", SHARDS),
)


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
        "gridPos": {"x": WIDTH * (number % 2), "y": HEIGHT * (number // 2), "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": {"scaleDistribution": scale, "showPoints": "never"}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": ref, "datasource": source, "expr": expr, "legendFormat": legend}
            for ref, (legend, expr) in zip(ascii_uppercase, panel.queries.items(), strict=False)
        ],
    }
