"""`adamserve metrics`: what there is to watch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from adamserve.cli.options import Format, answer, opt


def list_metrics(output: Annotated[Format, opt("Print text or JSON.", "--format")] = "table") -> None:
    """List every metric: its type, its labels, which processes have it, and the panels and alerts that look at it."""
    from adamserve.observe.usage import usages

    found = usages()
    answer(output, found, *(line for usage in found for line in _lines(usage)))


def _lines(usage: Mapping[str, Any]) -> Iterator[str]:
    yield f"{usage['name']}  {usage['type']}  {', '.join(usage['labels'])}"
    yield f"    {usage['help']}"
    yield f"    from: {', '.join(usage['processes'])}"
    for lookers in ("panels", "alerts"):
        if usage[lookers]:
            yield f"    {lookers}: {'; '.join(usage[lookers])}"
