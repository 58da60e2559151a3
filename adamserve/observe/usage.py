"""Which panels and alerts look at which metric."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adamserve.observe.alerts import ALERTS, RECORDINGS
from adamserve.observe.dashboards import DASHBOARDS
from adamserve.observe.families import FAMILIES


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """A metric, and who looks at it.

    Attributes:
        name, type, help, labels, processes: of the metric.
        panels: as "dashboard: panel".
        alerts: by name.
    """

    name: str
    type: str
    help: str
    labels: tuple[str, ...]
    processes: tuple[str, ...]
    panels: tuple[str, ...]
    alerts: tuple[str, ...]


def usages() -> tuple[Usage, ...]:
    """Every metric, in the order of `FAMILIES`."""
    recorded = {rule.record: rule.expr for rule in RECORDINGS}
    return tuple(
        Usage(
            name=family.name,
            type=family.kind,
            help=family.help,
            labels=family.labels,
            processes=family.processes,
            panels=tuple(
                f"{dashboard.title.removeprefix('adamserve: ')}: {panel.title}"
                for dashboard in DASHBOARDS
                for panel in dashboard.panels
                if _looks_at(family.name, (query.expr for query in panel.queries), recorded)
            ),
            alerts=tuple(rule.alert for rule in ALERTS if _looks_at(family.name, [rule.expr], recorded)),
        )
        for family in FAMILIES
    )


def _looks_at(name: str, expressions: Iterable[str], recorded: Mapping[str, str]) -> bool:
    """Whether an expression names the metric, itself or through a recording."""
    word = re.compile(rf"(?<![\w:]){name}(_bucket|_sum|_count)?(?![\w:])")
    return any(
        word.search(expression) or any(word.search(recorded[r]) for r in recorded if r in expression)
        for expression in expressions
    )
