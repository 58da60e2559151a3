"""A panel's lines as a picture."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from adamserve.errors import Unavailable
from adamserve.observe.dashboards import Panel
from adamserve.observe.render.prometheus import Series, Window

LEGENDS = 12
"""Lines that are named below a picture; all are drawn."""

SUFFIXES = {"short": "", "ops": "/s", "bytes": "B", "Bps": "B/s", "s": "s"}
"""How values are written whose unit Grafana names so."""


def named(legend: str, line: Series) -> str:
    """A legend with the line's labels in place of {{label}}."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: line.labels.get(match[1], ""), legend).strip()


def png(
    title: str, panel: Panel, lines: Sequence[tuple[str, Series]], missing: Sequence[str], window: Window
) -> bytes:
    """Draw a panel's lines over time, each with its name; `missing` are the legends of queries without data."""
    try:
        import matplotlib.dates
        from matplotlib.figure import Figure
    except ImportError:
        raise Unavailable(
            "matplotlib is not installed", field="render", fix="pip install 'adamserve[train]'"
        ) from None

    dates: Any = matplotlib.dates  # its functions have no annotations
    figure: Any = Figure(figsize=(6.4, 3.4), dpi=100, layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    for number, (name, line) in enumerate(lines):
        values = with_gaps(line, window)
        moments = [datetime.fromtimestamp(window.start + window.step * i, UTC) for i in range(len(values))]
        marker = "." if len(line.points) == 1 else ""
        label = (name or "value") if number < LEGENDS else "_"  # which no legend shows
        axes.plot(moments, values, label=label, linewidth=1.2, marker=marker)
    if lines:
        everything = [value for _, line in lines for _, value in line.points]
        low, high = min(everything), max(everything)
        if panel.log and high > 0:
            axes.set_yscale("log", nonpositive="mask")
        elif low == high >= 0 or 0 <= low <= 0.9 * high:  # an axis from 0 hides nothing
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: text(panel.unit, value))
        few = panel.log and high < 30 * max(low, 1e-300)
        axes.yaxis.set_minor_formatter(lambda value, _: text(panel.unit, value) if few else "")
        more = [f"and {len(lines) - LEGENDS} more"] if len(lines) > LEGENDS else []
        for note in more + [f"{legend}: no data" for legend in missing]:
            axes.plot([], [], color="none", label=note)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", fontsize=18)
        axes.set_yticks([])
    locator = dates.AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axes.set_xlim(*(datetime.fromtimestamp(at, UTC) for at in (window.start, window.end)))
    axes.set_xlabel("UTC", fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    axes.xaxis.get_offset_text().set_fontsize(8)
    axes.grid(alpha=0.3)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def with_gaps(line: Series, window: Window) -> list[float]:
    """A line's values at every step of the window, NaN where it has none."""
    values = [math.nan] * (round((window.end - window.start) / window.step) + 1)
    for at, value in line.points:
        values[round((at - window.start) / window.step)] = value
    return values


def text(unit: str, value: float) -> str:
    """How an axis writes a value of one of Grafana's units."""
    from matplotlib.ticker import EngFormatter

    if unit == "percentunit":
        return f"{100 * value:g} %"
    if unit == "s" and abs(value) >= 60:
        size, name = (3600, "h") if abs(value) >= 3600 else (60, "min")
        return f"{value / size:.3g} {name}"
    if unit != "s" and abs(value) < 1000:  # there are no thousandths of a push
        return f"{value:.4g}{SUFFIXES[unit]}"
    return str(EngFormatter(SUFFIXES[unit], sep="")(value))
