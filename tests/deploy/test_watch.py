"""Rules and dashboards: generated, checked by promtool, complete, and of one manner."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from adamserve.observe import alerts, dashboards
from adamserve.observe.exporter import Exporter
from adamserve.observe.families import FAMILIES, PROCESSES, Process
from adamserve.observe.files import DEPLOY, files
from adamserve.observe.state import JobState
from adamserve.observe.usage import usages
from tests.deploy.alerts import CASES, document
from tests.deploy.prometheus import ROOT, promtool
from tests.observe.test_exporter import JOB, exporter, text_of

RULES = DEPLOY / "prometheus" / "rules.yml"
PANELS = {f"{d.uid}: {title}": panel for d in dashboards.DASHBOARDS for title, panel in d.panels.items()}


def test_the_files_are_what_the_package_makes() -> None:
    made = files()
    assert {name: (DEPLOY / name).read_text() for name in made} == made
    there = {str(path.relative_to(DEPLOY)) for path in (DEPLOY / "grafana" / "dashboards").iterdir()}
    assert there == {name for name in made if name.startswith("grafana")}
    rules = [
        rule for group in yaml.safe_load(made["prometheus/rules.yml"])["groups"] for rule in group["rules"]
    ]
    assert {rule["record"]: rule["expr"] for rule in rules if "record" in rule} == alerts.RECORDINGS
    texts = [(name, alert.expr, alert.wait, alert.severity) for name, alert in alerts.ALERTS.items()]
    alerting = [rule for rule in rules if "alert" in rule]
    assert [(r["alert"], r["expr"], r["for"], r["labels"]["severity"]) for r in alerting] == texts


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    done = promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts.RECORDINGS) + len(alerts.ALERTS)} rules found" in done.stdout


def test_promtool_finds_planted_errors(tmp_path: Path) -> None:
    text = (DEPLOY / "prometheus" / "rules.yml").read_text()
    for number, (right, wrong) in enumerate(
        [("sum by (job, le) (", "sum by (job, le ("), ('for: "2m"', 'for: "2 minutes"'), ("alert:", "alarm:")]
    ):
        assert right in text
        path = tmp_path / f"{number}.yml"
        path.write_text(text.replace(right, wrong, 1))
        assert promtool("check", "rules", path).returncode != 0


@pytest.mark.parametrize("process", PROCESSES)
def test_promtool_likes_the_metrics_names(process: Process) -> None:
    with exporter(process) as made:
        if process == "driver":
            made.show(JOB)
        text = text_of(made.port)
    assert all(name in text for name, family in FAMILIES.items() if process in family.processes)
    done = promtool("check", "metrics", stdin=text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # The same tool complains where there is something to complain of.
    wrong = text.replace("# HELP adamserve_build_info ", "# ").replace("_total{", "{")
    assert promtool("check", "metrics", stdin=wrong).returncode != 0


def test_a_job_that_has_not_begun_has_its_counts_only() -> None:
    made = Exporter("127.0.0.1", 0)
    try:
        made.show(JobState(job="job"))
        text = text_of(made.port)
    finally:
        made.close()
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert names == {
        "adamserve_build_info",
        "adamserve_jobs",
        "adamserve_losses_not_finite_total",
        "adamserve_rollbacks_total",
    }


def test_every_metric_is_looked_at_and_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for usage in usages():
        assert usage["panels"] or usage["alerts"], f"nobody looks at {usage['name']}"
        assert f"`{usage['name']}`" in readme, f"README.md does not name {usage['name']}"
    documented = set(re.findall(r"`(adamserve_\w+)`", readme))
    assert documented == {usage["name"] for usage in usages()}, "README.md names what is no metric"


def test_every_name_in_a_query_is_a_metric_or_a_recording() -> None:
    known = {usage["name"] for usage in usages()} | alerts.RECORDINGS.keys()
    expressions = [query for panel in PANELS.values() for query in panel.queries.values()]
    expressions += [*alerts.RECORDINGS.values(), *(alert.expr for alert in alerts.ALERTS.values())]
    for expression in expressions:
        for name in re.findall(r"(?:job:|method:)?adamserve_\w+(?::\w+)?", expression):
            assert name in known or re.sub("_(bucket|sum|count)$", "", name) in known, expression


def test_metrics_list_says_who_looks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "adamserve", "metrics", "list"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True)
    listed = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert list(listed) == [usage["name"] for usage in usages()]
    assert listed["adamserve_clock"] == {
        "name": "adamserve_clock",
        "type": "gauge",
        "help": "Updates applied.",
        "labels": ["job", "shard"],
        "processes": ["shard"],
        "panels": ["shards and gRPC: Clocks"],
        "alerts": [],
    }
    assert listed["adamserve_rpc_started_total"]["processes"] == ["driver", "shard"]
    assert listed["adamserve_staleness_updates"]["alerts"] == [
        "AdamserveStalenessHigh"
    ]  # through a recording
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "adamserve_shard_up  gauge  job, shard\n    1 while" in text
    assert "    from: driver\n" in text
    assert "    alerts: AdamserveShardDown\n" in text


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_panels_have_a_unit_a_description_and_the_job_variable(panel: dashboards.Panel) -> None:
    assert panel.text.endswith(".")
    assert panel.unit in {"short", "s", "ops", "bytes", "Bps", "percentunit"}
    labels = {name: family.labels for name, family in FAMILIES.items()}
    for legend, query in panel.queries.items():
        metrics = re.findall(r"adamserve_\w+", query)
        names = {re.sub("_(bucket|sum|count)$", "", metric) for metric in metrics}
        if any("job" in labels[name] for name in names):
            assert query.count("{" + dashboards.JOB) == len(metrics)
            assert "{{job}}" in legend
        assert re.findall(r"\[(.*?)\]", query) == ["$__rate_interval"] * query.count("[")
        counters = [metric for metric in metrics if metric.endswith(("_total", "_bucket", "_sum", "_count"))]
        gauge_like = "rollbacks" in query  # shown beside the incarnations, as a count
        assert len(counters) == len(re.findall(r"rate\(|increase\(", query)) or gauge_like
        wanted = {"_seconds": "s", "_bytes": "bytes", "_ratio": "percentunit"}
        for name in names:
            unit = next((u for end, u in wanted.items() if name.endswith(end)), None)
            of_time = "rate(" in query and not name.endswith("_total") and "_bucket" not in query
            assert unit in (None, panel.unit) or of_time, f"it shows {name} in {panel.unit}"


@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS, ids=lambda d: d.uid)
def test_dashboards_fill_the_grid_and_ask_the_chosen_source(dashboard: dashboards.Dashboard) -> None:
    document = dashboards.document(dashboard)
    assert [variable["name"] for variable in document["templating"]["list"]] == ["datasource", "job"]
    places = [tuple(p["gridPos"][k] for k in "xywh") for p in document["panels"]]
    assert len(set(places)) == len(places)
    assert all(x + w <= 24 for x, _, w, _ in places)
    for panel in document["panels"]:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])


def test_every_alert_has_a_section_in_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / alerts.RUNBOOK).read_text(), re.MULTILINE)
    assert headings == list(alerts.ALERTS)


def run_tests(document: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "rules_test.yml"
    path.write_text(yaml.safe_dump(document))
    return promtool("test", "rules", path)


def test_every_alert_has_cases_that_fire_and_cases_that_stay_quiet() -> None:
    assert list(CASES) == list(alerts.ALERTS)
    for name, cases in CASES.items():
        fires = [case.labels is not None for case in cases]
        assert any(fires), f"{name} never fires"
        assert not all(fires), f"{name} never keeps quiet"


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """To the letter of their texts, and at the second."""
    done = run_tests(document(str(RULES)), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("alert", "right", "wrong"),
    [
        ("AdamserveNoProgress", "rate1m == 0", "rate1m < 0"),
        ("AdamserveLossNotFinite", "increase(adamserve_losses", "sum_over_time(adamserve_losses"),
        (
            "AdamserveRegretNotFalling",
            ">= adamserve_average_regret offset",
            "> adamserve_average_regret offset",
        ),
        ("AdamserveStalenessHigh", "p99_5m > 64", "p99_5m > 640"),
        ("AdamservePushesRefused", "ratio5m > 0.05", "ratio5m > 0.03"),
        ("AdamserveCallsFail", "|INTERNAL|", "|INTERNAL|NOT_FOUND|"),
        ("AdamserveQueueSaturated", "waiting) >= 48", "waiting) >= 47"),
        ("AdamservePusherSilent", 'for: "15s"', 'for: "0s"'),
        ("AdamserveShardDown", "shard_up == 0", "shard_up == 1"),
        ("AdamserveTargetDown", "does not answer Prometheus", "does not answer"),
        ("AdamserveCheckpointOld", "humanizeDuration", "humanize"),
        ("AdamserveClockSkew", " unless on (job) increase(adamserve_rollbacks_total[10m]) > 0", ""),
    ],
)
def test_a_rule_with_a_planted_error_fails_its_cases(
    alert: str, right: str, wrong: str, tmp_path: Path
) -> None:
    text = RULES.read_text()
    assert right in text
    planted = tmp_path / "rules.yml"
    planted.write_text(text.replace(right, wrong))
    assert promtool("check", "rules", planted).returncode == 0
    done = run_tests(document(str(planted), {alert: CASES[alert]}), tmp_path)
    assert done.returncode != 0
    assert "FAILED" in done.stdout + done.stderr
