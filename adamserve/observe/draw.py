"""The dashboards' panels as pictures, and all of them as one HTML document: for whoever has no Grafana."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from adamserve.errors import Unavailable
from adamserve.observe.dashboards import Dashboard, Panel
from adamserve.observe.query import Prometheus, Series, Window, substituted

LEGENDS = 12
"""Lines that are named below a picture; all are drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A panel, drawn.

    Attributes:
        dashboard, panel: what is drawn.
        queries: what Prometheus was asked, variables filled in.
        lines: how many came back; 0 is "no data", and the picture says so.
        png: the picture.
    """

    dashboard: Dashboard
    panel: Panel
    queries: tuple[str, ...]
    lines: int
    png: bytes

    @property
    def file(self) -> str:
        """A name for it."""
        words = f"{self.dashboard.uid.removeprefix('adamserve-')} {self.panel.title}".lower()
        return f"{re.sub(r'[^a-z0-9]+', '-', words).strip('-')}.png"


def picture(
    prometheus: Prometheus, dashboard: Dashboard, panel: Panel, window: Window, known: dict[str, str]
) -> Picture:
    """Ask for a panel's lines and draw them."""
    queries = tuple(substituted(query.expr, known) for query in panel.queries)
    lines: list[tuple[str, Series]] = []
    missing: list[str] = []
    for query, expr in zip(panel.queries, queries, strict=True):
        found = prometheus.lines(expr, window, field=f"{dashboard.title}: {panel.title}")
        lines += [(named(query.legend, line), line) for line in found]
        if not found:
            missing.append(query.legend)
    drawn = png(panel, lines, missing, window)
    return Picture(dashboard=dashboard, panel=panel, queries=queries, lines=len(lines), png=drawn)


def named(legend: str, line: Series) -> str:
    """A legend with the line's labels in place of {{label}}."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: line.labels.get(match[1], ""), legend).strip()


def png(panel: Panel, lines: Sequence[tuple[str, Series]], missing: Sequence[str], window: Window) -> bytes:
    """Draw a panel's lines over time.

    Args:
        panel: its title, unit and axis.
        lines: by name.
        missing: legends of the queries without data.
        window: the range of time, whose step says where a line has a gap.
    """
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
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
    for name, line in lines:
        times, values = with_gaps(line, window.step)
        marker = "." if len(line.points) == 1 else ""
        moments = [datetime.fromtimestamp(at, UTC) for at in times]
        axes.plot(moments, values, label=name or "value", linewidth=1.2, marker=marker)
    values = [value for _, line in lines for _, value in line.points]
    if panel.log and any(value > 0 for value in values):
        axes.set_yscale("log", nonpositive="mask")
    elif values:
        _leave_room(axes, min(values), max(values))
    if not lines:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", fontsize=18)
        axes.set_yticks([])
    else:
        axes.yaxis.set_major_formatter(formatter(panel.unit))
        few = panel.log and max(values) < 30 * max(min(values), 1e-300)
        axes.yaxis.set_minor_formatter(formatter(panel.unit) if few else lambda value, _: "")
    locator = dates.AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axes.set_xlim(*(datetime.fromtimestamp(at, UTC) for at in (window.start, window.end)))
    axes.set_xlabel("UTC", fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    axes.xaxis.get_offset_text().set_fontsize(8)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    labels = labels[:LEGENDS] + ([f"and {len(labels) - LEGENDS} more"] if len(labels) > LEGENDS else [])
    handles = handles[: len(labels)]
    if lines:
        for legend in missing:
            handles.append(axes.plot([], [], color="none")[0])
            labels.append(f"{legend}: no data")
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def with_gaps(line: Series, step: float) -> tuple[list[float], list[float]]:
    """A line's times and values, with NaN between two points that are more than a step apart."""
    times: list[float] = []
    values: list[float] = []
    for at, value in line.points:
        if times and at - times[-1] > 1.5 * step:
            times.append(times[-1] + step)
            values.append(math.nan)
        times.append(at)
        values.append(value)
    return times, values


def _leave_room(axes: Any, low: float, high: float) -> None:
    """A linear axis that begins at 0 where that hides nothing, and has a height even for a constant."""
    if low >= 0 and (low == high or low <= 0.9 * high):
        axes.set_ylim(0, 1.1 * high or 1.0)
    elif low == high:
        axes.set_ylim(low - 0.1 * abs(low), high + 0.1 * abs(high))


def formatter(unit: str) -> Callable[[float, int], str]:
    """How an axis writes values of one of Grafana's units."""
    texts: dict[str, Callable[[float], str]] = {
        "short": _short,
        "none": _short,
        "ops": lambda value: f"{_short(value)}/s",
        "s": _seconds,
        "percentunit": lambda value: f"{100 * value:g} %",
        "bytes": _bytes,
        "decbytes": _bytes,
        "Bps": lambda value: f"{_bytes(value)}/s",
        "binBps": lambda value: f"{_bytes(value)}/s",
    }
    text = texts.setdefault(unit, lambda value: f"{_short(value)} {unit}")
    return lambda value, _: text(float(value))


def _short(value: float) -> str:
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g} {name}"
    return f"{value:.4g}"


def _seconds(value: float) -> str:
    for size, name in ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:g} s"


def _bytes(value: float) -> str:
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            return f"{value / 1024**power:.3g} {name}"
    return f"{value:g} B"


def document(pictures: Sequence[Picture], window: Window) -> str:
    """All pictures in one HTML document that needs nothing else."""
    parts = []
    for dashboard in dict.fromkeys(picture.dashboard.uid for picture in pictures):
        own = [picture for picture in pictures if picture.dashboard.uid == dashboard]
        figures = "".join(
            f'<figure><img alt="{escape(p.panel.title)}" src="data:image/png;base64,{_base64(p.png)}">'
            f"<figcaption>{escape(p.panel.text)}{'' if p.lines else ' <b>No data.</b>'}</figcaption></figure>"
            for p in own
        )
        parts.append(f'<h2>{escape(own[0].dashboard.title)}</h2><div class="row">{figures}</div>')
    start, end = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}" for at in (window.start, window.end))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>adamserve dashboards</title>'
        '<link rel="icon" href="data:,"><style>body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; }\n'
        ".row { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; width: 640px; }\n"
        "img { width: 100%; border: 1px solid #8886; } figcaption { opacity: .8; }</style></head>\n"
        f"<body><h1>adamserve dashboards</h1><p>{start} to {end} UTC</p>{''.join(parts)}</body></html>\n"
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
