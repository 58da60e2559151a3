"""`adamserve metrics`: what there is to watch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from adamserve.cli.options import Format, answer, opt

if TYPE_CHECKING:
    from adamserve.observe.usage import Usage


def list_metrics(output: Annotated[Format, opt("Print text or JSON.", "--format")] = "table") -> None:
    """List every metric: its type, its labels, which processes have it, and the panels and alerts that look at it."""
    from adamserve.observe.usage import usages

    found = usages()
    answer(output, [asdict(usage) for usage in found], *(line for usage in found for line in _lines(usage)))


def _lines(usage: Usage) -> Iterator[str]:
    yield f"{usage.name}  {usage.type}  {', '.join(usage.labels)}"
    yield f"    {usage.help}"
    yield f"    from: {', '.join(usage.processes)}"
    for name, lookers in (("panels", usage.panels), ("alerts", usage.alerts)):
        if lookers:
            yield f"    {name}: {'; '.join(lookers)}"
