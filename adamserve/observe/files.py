"""The files of deploy/ that are made from this package: `python -m adamserve.observe.files` writes them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path

from adamserve.observe import alerts, dashboards

DEPLOY = Path(__file__).parents[2] / "deploy"

PROMETHEUS_RULE = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: adamserve
  labels:
    app.kubernetes.io/name: adamserve
    release: prometheus # what kube-prometheus-stack selects by; yours may select by another label
spec:
"""
"""The rules for the Prometheus operator: what stands above their groups."""

NOTE = "# Made from adamserve/observe/alerts.py by `make deploy-files`.\n"


def files() -> Mapping[str, str]:
    """Their contents by path below deploy/."""
    groups = _groups()
    contents = {
        "prometheus/rules.yml": NOTE + groups,
        "kuberay/prometheusrule.yaml": NOTE + PROMETHEUS_RULE + textwrap.indent(groups, "  "),
    }
    for dashboard in dashboards.DASHBOARDS:
        content = json.dumps(dashboards.document(dashboard), indent=2) + "\n"
        contents[f"grafana/dashboards/{dashboard.uid}.json"] = content
    return contents


def _groups() -> str:
    """The rules as YAML: every text a quoted string, as JSON quotes it."""
    lines = ["groups:", "  - name: adamserve-recordings", "    rules:"]
    for name, expr in alerts.RECORDINGS.items():
        lines += [f'      - record: "{name}"', f"        expr: {json.dumps(expr)}"]
    lines += ["  - name: adamserve-alerts", "    rules:"]
    for name, rule in alerts.ALERTS.items():
        lines += [
            f'      - alert: "{name}"',
            f"        expr: {json.dumps(rule.expr)}",
            f'        for: "{rule.wait}"',
            "        labels:",
            f'          severity: "{rule.severity}"',
            "        annotations:",
            f"          summary: {json.dumps(rule.summary)}",
            f"          description: {json.dumps(rule.description)}",
            f'          runbook: "{alerts.RUNBOOK}#{name.lower()}"',
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the files anew."""
    for name, content in files().items():
        path = DEPLOY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(path)


if __name__ == "__main__":
    main()
