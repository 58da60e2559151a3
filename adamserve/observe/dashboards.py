"""Grafana's dashboards, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
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
        unit: as Grafana names units.
        text: what to make of it.
        queries: its lines.
        log: a logarithmic axis.
    """

    unit: str
    text: str
    queries: Queries
    log: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels by title, in reading order; its `uid` names its file too."""

    uid: str
    title: str
    panels: Mapping[str, Panel]


_short, _ops, _seconds, _share = (partial(Panel, unit) for unit in ("short", "ops", "s", "percentunit"))


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


LOSS = _short(
    "Mean of the last 50 mini-batches, and the lowest that it has been.",
    _job("adamserve_loss") | _job("adamserve_best_loss", "{{job}} best"),
    log=True,
)

OVERVIEW = {
    "Training loss": LOSS,
    "Pushes applied": _ops(
        "Updates a second; every push reaches every shard and is counted once.",
        _pushes("{{job}}", outcome=',outcome="APPLIED"'),
    ),
    "Updates of the slowest shard": _ops(
        "As its clock has moved in the last 5 seconds; in bsp one update takes a push of every pusher.",
        _job("adamserve_updates_per_second"),
    ),
    "Pushers alive": _short(
        "Workers in the cluster and trainers outside of it whose lease runs.",
        _max("adamserve_pushers_alive", "job, kind", "{{job}} {{kind}}s"),
    ),
    "Shards up": _short(
        "1 while a shard's process lives; it drops to 0 while the shard is restored.",
        _shards("adamserve_shard_up"),
    ),
    "Checkpoint age": _seconds(
        "Time since the last checkpoint was written.", _job("adamserve_checkpoint_age_seconds")
    ),
    "Updates not in a checkpoint": _short(
        "What the death of a shard would lose now, at most.", _job("adamserve_durability_lag_updates")
    ),
    "Jobs": _short("Of every service.", {"{{instance}}": "sum by (instance) (adamserve_jobs)"}),
    "Processes": _short(
        "Those that serve metrics, by kind and version.",
        {"{{process}}, adamserve {{version}}": "count by (process, version) (adamserve_build_info)"},
    ),
}

CONVERGENCE = {
    "Training loss": LOSS,
    "Average regret": _short(
        "R(T)/T of a convex job against its comparator, and Theorem 4.1's bound where it is about the rule.",
        _job("adamserve_average_regret") | _job("adamserve_average_regret_bound", "{{job}} bound"),
        log=True,
    ),
    "Regret": _short("R(T): the sum of losses above the comparator's.", _job("adamserve_regret")),
    "Test accuracy": _share("At the last evaluation.", _job("adamserve_test_accuracy_ratio")),
    "Rate": _short(
        "Of the rule, by its schedule.", _job("adamserve_learning_rate", "{{job}} {{rule}}"), log=True
    ),
    "Gradient norm": _short(
        "Euclidean norm of one gradient over all shards, from a sample of its elements; one update a scrape.",
        {"{{job}}": f"sqrt(sum by (job) (max by (job, shard) (adamserve_gradient_norm{{{JOB}}}) ^ 2))"},
        log=True,
    ),
    "Largest step": _short(
        "Max-norm of one update, from a sample of the parameters, and what the rule bounds it by.",
        _max("adamserve_update_max_norm") | _max("adamserve_update_max_norm_bound", legend="{{job}} bound"),
        log=True,
    ),
    "Losses not finite": _short(
        "Losses refused because they were NaN or infinite; the training has diverged.",
        {"{{job}}": f"increase(adamserve_losses_not_finite_total{{{JOB}}}{SPAN})"},
    ),
}

STALENESS = {
    "Staleness": _short(
        "Updates between a push's pull and its arrival; about workers - 1 when all keep the same pace.",
        _quantiles("adamserve_staleness_updates"),
    ),
    "Pushes by outcome": _ops(
        "STALE: too old. INVALID: refused for its content. DUPLICATE: sent again, applied once.",
        _pushes("{{job}} {{outcome}}", ", outcome"),
    ),
    "Pushers alive, by shard": _short(
        "All shards see the same pushers; one that sees fewer is cut off from some.",
        {"{{job}} shard {{shard}}": f"sum by (job, shard) (adamserve_pushers_alive{{{JOB}}})"},
    ),
    "Pushers silent": _short(
        "Those whose lease ran out of late, and how many leases ran out in the interval.",
        {
            "{{job}} silent now": f"max by (job) (adamserve_pushers_silent{{{JOB}}})",
            "{{job}} leases that ran out": (
                f"max by (job) (increase(adamserve_lease_expiries_total{{{JOB}}}{SPAN}))"
            ),
        },
    ),
    "Steps of each worker": _ops(
        "Steps a second; workers of one kind should keep the same pace.",
        _rate("adamserve_worker_steps_total", "job, worker", "{{job}} worker {{worker}}"),
    ),
    "Where the workers' time goes": _seconds(
        "Seconds a second of all workers: pulling, computing gradients, pushing.",
        _rate("adamserve_worker_seconds_total", "job, part", "{{job}} {{part}}"),
    ),
}

SHARDS = {
    "Push duration": _seconds(
        "From arrival to receipt, the wait for a turn included.",
        _quantiles("adamserve_push_seconds"),
        log=True,
    ),
    "Queue duration": _seconds(
        "Of a push: its wait for the shard, for its round (bsp) or for a pusher that lags (ssp).",
        _quantiles("adamserve_queue_seconds"),
        log=True,
    ),
    "Apply duration": _seconds(
        "Of an update: the time inside the rule.", _quantiles("adamserve_apply_seconds"), log=True
    ),
    "Time inside the rule": _share(
        "Seconds a second: 1 means that the shard does nothing but apply pushes.",
        _rate("adamserve_apply_seconds_sum", "job, shard", "{{job}} shard {{shard}}"),
    ),
    "Pushes waiting": _short(
        "For their round (bsp), or for a pusher that lags (ssp); a shard lets 64 wait.",
        _shards("adamserve_pushes_waiting"),
    ),
    "Traffic": Panel(
        "Bps",
        "Gradients in, parameters out.",
        _rate("adamserve_bytes_total", "job, direction", "{{job}} {{direction}}"),
    ),
    "Clocks": _short("Updates that each shard has applied.", _shards("adamserve_clock")),
    "Clock skew": _short(
        "Updates between the shard that is farthest ahead and the last one; what a rollback lost stays in it.",
        _job("adamserve_clock_skew_updates"),
    ),
    "Incarnations and rollbacks": _short(
        "A shard's incarnation grows by one when it is restored from a checkpoint.",
        _shards("adamserve_incarnation", "{{job}} shard {{shard}} incarnation")
        | _job("adamserve_rollbacks_total", "{{job}} rollbacks"),
    ),
    "State": Panel("bytes", "Parameters and slots in the shards' memory.", _shards("adamserve_state_bytes")),
    "Checkpoint duration": _seconds(
        "Time that the last checkpoint took to write, while pushes went on.",
        _job("adamserve_checkpoint_duration_seconds"),
    ),
    "Calls started": _ops(
        "Calls a second that came in from outside the cluster, by method.",
        {"{{carrier}} {{method}}": f"sum by (carrier, method) (rate(adamserve_rpc_started_total{SPAN}))"},
    ),
    "Calls handled": _ops(
        "Calls a second that were answered, by status code.",
        {"{{carrier}} {{code}}": f"sum by (carrier, code) (rate(adamserve_rpc_handled_total{SPAN}))"},
    ),
}

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
        "panels": [_panel(number, *item) for number, item in enumerate(dashboard.panels.items())],
    }


def _panel(number: int, title: str, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    scale = {"type": "log", "log": 10} if panel.log else {"type": "linear"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
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
