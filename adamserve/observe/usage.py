"""Which panels and alerts look at which metric."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from adamserve.observe.alerts import ALERTS, RECORDINGS
from adamserve.observe.dashboards import DASHBOARDS
from adamserve.observe.families import FAMILIES, kind_of


def usages() -> list[dict[str, Any]]:
    """Every metric in the order of `FAMILIES`, with its panels (as "dashboard: panel") and its alerts."""
    return [
        {
            "name": name,
            "type": kind_of(name),
            "help": family.help,
            "labels": family.labels,
            "processes": family.processes,
            "panels": [
                f"{dashboard.title.removeprefix('adamserve: ')}: {title}"
                for dashboard in DASHBOARDS
                for title, panel in dashboard.panels.items()
                if _looks_at(name, panel.queries.values())
            ],
            "alerts": [alert for alert, rule in ALERTS.items() if _looks_at(name, [rule.expr])],
        }
        for name, family in FAMILIES.items()
    ]


def _looks_at(name: str, expressions: Iterable[str]) -> bool:
    """Whether an expression names the metric, itself or through a recording."""
    word = re.compile(rf"(?<![\w:]){name}(_bucket|_sum|_count)?(?![\w:])")
    return any(
        word.search(expression)
        or any(word.search(query) for record, query in RECORDINGS.items() if record in expression)
        for expression in expressions
    )
