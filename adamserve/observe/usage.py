"""Which panels and alerts look at which metric."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from adamserve.observe.alerts import ALERTS, RECORDINGS
from adamserve.observe.dashboards import DASHBOARDS
from adamserve.observe.families import FAMILIES


def usages() -> list[dict[str, Any]]:
    """Every metric in the order of `FAMILIES`, with its panels (as "dashboard: panel") and its alerts."""
    return [
        {
            "name": family.name,
            "type": family.kind,
            "help": family.help,
            "labels": family.labels,
            "processes": family.processes,
            "panels": [
                f"{dashboard.title.removeprefix('adamserve: ')}: {panel.title}"
                for dashboard in DASHBOARDS
                for panel in dashboard.panels
                if _looks_at(family.name, panel.queries.values())
            ],
            "alerts": [rule.alert for rule in ALERTS if _looks_at(family.name, [rule.expr])],
        }
        for family in FAMILIES
    ]


def _looks_at(name: str, expressions: Iterable[str]) -> bool:
    """Whether an expression names the metric, itself or through a recording."""
    word = re.compile(rf"(?<![\w:]){name}(_bucket|_sum|_count)?(?![\w:])")
    return any(
        word.search(expression)
        or any(word.search(query) for record, query in RECORDINGS.items() if record in expression)
        for expression in expressions
    )
