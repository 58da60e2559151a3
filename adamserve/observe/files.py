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
    """Their contents by path below deploy/. JSON is YAML, and has one way to be written."""
    groups = _yaml(alerts.document())
    found = {
        "prometheus/rules.yml": NOTE + groups,
        "kuberay/prometheusrule.yaml": NOTE + PROMETHEUS_RULE + textwrap.indent(groups, "  "),
    }
    for dashboard in dashboards.DASHBOARDS:
        content = json.dumps(dashboards.document(dashboard), indent=2) + "\n"
        found[f"grafana/dashboards/{dashboard.uid}.json"] = content
    return found


def _yaml(document: Mapping[str, list[dict[str, object]]]) -> str:
    """The rules as YAML: every text a quoted string, as JSON quotes it."""
    lines = ["groups:"]
    for group in document["groups"]:
        lines += [f"  - name: {group['name']}", "    rules:"]
        assert isinstance(group["rules"], list)
        for rule in group["rules"]:
            first = True
            for key, value in rule.items():
                lead = "      - " if first else "        "
                first = False
                if isinstance(value, dict):
                    lines.append(f"{lead}{key}:")
                    lines += [f"          {name}: {json.dumps(text)}" for name, text in value.items()]
                else:
                    lines.append(f"{lead}{key}: {json.dumps(value)}")
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
