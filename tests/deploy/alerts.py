"""When each alert fires and when it keeps quiet: series, and what `promtool test rules` is to find."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamserve.observe.alerts import ALERTS, RUNBOOK

Series = dict[str, str]
"""Values by series, a sample each 15 s, as promtool writes them: `0+15x240` is 0, 15, 30 ... for an hour."""

JOB = 'job="j"'


@dataclass(frozen=True)
class Case:
    """An alert at one moment.

    Attributes:
        why: what is so.
        series: what has been scraped.
        labels: those of the alert that fires, besides its name and severity; None if it keeps quiet.
        value: as its texts show the value.
        at: when.
    """

    why: str
    series: Series
    labels: Mapping[str, str] | None = None
    value: str = ""
    at: str = "30m"


def applied(values: str, shard: int = 0) -> Series:
    return {f'adamserve_pushes_total{{{JOB},shard="{shard}",outcome="APPLIED",instance="i{shard}"}}': values}


def stale(values: str) -> Series:
    return {f'adamserve_pushes_total{{{JOB},shard="0",outcome="STALE",instance="i0"}}': values}


def of_job(metric: str, values: str) -> Series:
    return {f'{metric}{{{JOB},instance="c"}}': values}


def of_shard(metric: str, values: str, shard: int = 1) -> Series:
    return {f'{metric}{{{JOB},shard="{shard}",instance="i{shard}"}}': values}


def late(pushes: int) -> Series:
    """Fifteen pushes a sample, of which so many are later than 64 updates."""
    series = {"64.0": f"0+{15 - pushes}x240", "128.0": "0+15x240", "+Inf": "0+15x240"}
    return {
        f'adamserve_staleness_updates_bucket{{{JOB},shard="0",le="{le}"}}': values
        for le, values in series.items()
    }


def calls(**codes: str) -> Series:
    return {
        f'adamserve_rpc_handled_total{{job="adamserve",carrier="grpc",method="Push",code="{code}"}}': values
        for code, values in codes.items()
    }


def alive(workers: int, trainers: int) -> Series:
    return {
        f'adamserve_pushers_alive{{{JOB},shard="0",kind="worker"}}': f"{workers}x240",
        f'adamserve_pushers_alive{{{JOB},shard="0",kind="trainer"}}': f"{trainers}x240",
    }


RUNNING, STANDING, NEVER_BEGAN = applied("0+15x240"), applied("0+15x60 900x180"), applied("0x240")
J = {"job": "j"}

CASES: dict[str, tuple[Case, ...]] = {
    "AdamserveNoProgress": (
        Case("pushes have stopped", alive(2, 0) | STANDING, J, "0"),
        Case("a trainer pushes nothing from the start", alive(0, 1) | NEVER_BEGAN, J, "0"),
        Case("pushes are applied", alive(2, 0) | RUNNING),
        Case("nobody is there to push", alive(0, 0) | STANDING),
        Case("they stopped a minute and a half ago", alive(2, 0) | STANDING, at="16m30s"),
        Case(
            "a shard was restored, and its clock began anew in another process",
            alive(2, 0) | applied("0+15x60 _x180") | {
                key.replace("i0", "i9"): "_x61 0+15x179" for key in applied("")
            },
            at="17m",
        ),
    ),
    "AdamserveLossNotFinite": (
        Case("one was NaN a minute ago", of_job("adamserve_losses_not_finite_total", "0x116 1x124"), J),
        Case("some were, long ago", of_job("adamserve_losses_not_finite_total", "0x20 3x220")),
        Case("none was", of_job("adamserve_losses_not_finite_total", "0x240")),
    ),
    "AdamserveRegretNotFalling": (
        Case("it rises", of_job("adamserve_average_regret", "0.5+0.0025x240") | RUNNING, J, "0.8"),
        Case("it stands still", of_job("adamserve_average_regret", "0.5x240") | RUNNING, J, "0.5"),
        Case("it falls", of_job("adamserve_average_regret", "0.9-0.0025x240") | RUNNING),
        Case("the job rests", of_job("adamserve_average_regret", "0.5x240") | STANDING),
        Case("it began to rise just now", of_job("adamserve_average_regret", "0.9-0.0025x80 0.7+0.01x160") | RUNNING),
    ),
    "AdamserveStalenessHigh": (
        Case("one push in fifteen is very late", late(1), J, "118"),
        Case("none is", late(0)),
        Case("there are no pushes", {key: "15x240" for key in late(0)}),
    ),
    "AdamservePushesRefused": (
        Case("two of seventeen", stale("0+2x240") | RUNNING, J, "11.76%"),
        Case("one of thirty-one", stale("0+0.5x240") | RUNNING),
        Case("nobody pushes", stale("7x240") | applied("7x240")),
    ),
    "AdamserveCallsFail": (
        Case("one in eleven", calls(OK="0+10x240", INTERNAL="0+1x240"), {"method": "Push"}, "9.091%"),
        Case("callers' own faults", calls(OK="0+10x240", INVALID_ARGUMENT="0+5x240", NOT_FOUND="0+5x240")),
        Case("one in a hundred and one", calls(OK="0+100x240", UNAVAILABLE="0+1x240")),
        Case("none ever failed", calls(OK="0+10x240")),
    ),
    "AdamserveQueueSaturated": (
        Case("fifty wait", of_shard("adamserve_pushes_waiting", "50x240"), {**J, "shard": "1"}, "50"),
        Case("forty-seven wait", of_shard("adamserve_pushes_waiting", "47x240")),
        Case("fifty waited for half a minute", of_shard("adamserve_pushes_waiting", "0x117 50x2 0x120")),
    ),
    "AdamservePusherSilent": (
        Case(
            "two died, as both shards see",
            of_shard("adamserve_pushers_silent", "0x80 2x160", 0) | of_shard("adamserve_pushers_silent", "0x80 2x160"),
            J,
            "2",
        ),
        Case("it came back", of_shard("adamserve_pushers_silent", "0x80 1x20 0x140")),
        Case("it fell silent ten seconds ago", of_shard("adamserve_pushers_silent", "0x119 1x120"), at="30m10s"),
    ),
    "AdamserveShardDown": (
        Case("it is gone", of_shard("adamserve_shard_up", "1x80 0x160"), {**J, "shard": "1", "instance": "i1"}),
        Case("it lives", of_shard("adamserve_shard_up", "1x240")),
        Case("it has been restored", of_shard("adamserve_shard_up", "1x80 0x2 1x158")),
        Case("it is gone for a moment", of_shard("adamserve_shard_up", "1x119 0x120"), at="30m10s"),
    ),
    "AdamserveTargetDown": (
        Case(
            "it does not answer",
            {'up{job="adamserve",instance="i",process="worker",worker="0"}': "1x80 0x160"},
            {"job": "adamserve", "instance": "i", "process": "worker", "worker": "0"},
            "0",
        ),
        Case("it answers", {'up{job="adamserve",instance="i",process="worker",worker="0"}': "1x240"}),
        Case("it died, and is no target any more", {'up{job="adamserve",instance="i"}': "1x110 0x4 stale"}),
    ),
    "AdamserveCheckpointOld": (
        Case(
            "twenty-nine minutes and a half",
            of_job("adamserve_checkpoint_age_seconds", "0+15x118 1770x120") | RUNNING,
            {**J, "instance": "c"},
            "29m 30s",
        ),
        Case("it is young", of_job("adamserve_checkpoint_age_seconds", "30x240") | RUNNING),
        Case("nothing has changed since", of_job("adamserve_checkpoint_age_seconds", "0+15x240") | STANDING),
    ),
    "AdamserveClockSkew": (
        Case(
            "one shard gets fewer pushes",
            of_job("adamserve_clock_skew_updates", "0+10x240"),
            {**J, "instance": "c"},
            "200",
        ),
        Case("all get the same", of_job("adamserve_clock_skew_updates", "3x240")),
        Case("one was behind from the start", of_job("adamserve_clock_skew_updates", "5000x240")),
        Case(
            "one was restored and lost 5000",
            of_job("adamserve_clock_skew_updates", "0x105 5000x135")
            | of_job("adamserve_rollbacks_total", "0x105 1x135"),
        ),
    ),
}  # fmt: skip

WITH_INSTANCE = {"AdamserveRegretNotFalling"}
"""Alerts on a series of the driver as it is."""


def expected(name: str, case: Case) -> list[dict[str, Any]]:
    """What promtool is to find: labels and texts of the alert, to the letter."""
    if case.labels is None:
        return []
    alert = ALERTS[name]
    labels = dict(case.labels) | ({"instance": "c"} if name in WITH_INSTANCE else {})

    def text(template: str) -> str:
        template = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found.group(1)], template)
        return re.sub(r"{{[^}]*\$value[^}]*}}", case.value, template)

    return [
        {
            "exp_labels": {**labels, "severity": alert.severity},
            "exp_annotations": {
                "summary": text(alert.summary),
                "description": text(alert.description),
                "runbook": f"{RUNBOOK}#{name.lower()}",
            },
        }
    ]


def unit_test(name: str, case: Case, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One case as promtool reads it."""
    return {
        "name": f"{name}: {case.why}",
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": name, "exp_alerts": found}],
    }


def document(rules: str, cases: Mapping[str, tuple[Case, ...]] = CASES) -> dict[str, Any]:
    """All cases as a file for `promtool test rules`."""
    return {
        "rule_files": [rules],
        "evaluation_interval": "15s",
        "tests": [unit_test(name, c, expected(name, c)) for name, all_of in cases.items() for c in all_of],
    }
