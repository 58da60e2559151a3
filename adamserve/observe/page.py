"""The status page: one HTML document with the numbers and curves of every job in it, and nothing from elsewhere.

It works without JavaScript; with it, the numbers move.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from adamserve.observe.state import JobState, as_json
from adamserve.observe.words import (
    EVENT_HEAD,
    PUSHER_HEAD,
    SHARD_HEAD,
    clock_time,
    counted_pushers,
    event_row,
    facts,
    histogram,
    pusher_row,
    shard_rows,
    silent_first,
)

POINTS = 400
"""Points of a curve kept: beyond these every other one is dropped, and the next ones come half as often."""

NAMES_SHOWN = 50
"""Pushers listed by name: those that have been silent the longest."""

EVENTS_SHOWN = 20

REFRESH_S = 2.0

Curves = dict[str, list[tuple[float, float]]]
"""Points in time by name."""

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 64rem; margin: 1.5rem auto; padding: 0 1rem; }
h2 { margin: 1.5rem 0 .3rem; } h3 { margin: 1rem 0 .2rem; font-size: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .15rem 1rem .15rem 0; border-bottom: 1px solid #8884; }
td:not(:last-child) { white-space: nowrap; }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: .5rem 0; } figcaption { opacity: .8; }
svg { width: 19rem; height: 8rem; border: 1px solid #8886; } polyline { fill: none; stroke: #36c; stroke-width: 1.5; }
rect { fill: #36c; } .bad { color: #c62a2f; font-weight: bold; } .good { color: #18794e; }
""".strip()

SCRIPT = f"""
setInterval(async () => {{
  try {{
    const answer = await fetch(location.href);
    if (!answer.ok) throw answer.status;
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    document.querySelector('main').replaceWith(page.querySelector('main'));
    document.title = 'adamserve';
  }} catch (error) {{ document.title = 'adamserve (not answering)'; }}
}}, {REFRESH_S * 1000:.0f});
""".strip()


@dataclass(slots=True)
class _Curve:
    """Points at growing distances in time."""

    points: list[tuple[float, float]] = field(default_factory=list)
    every: int = 1
    seen: int = 0

    def add(self, at: float, value: float) -> None:
        if self.seen % self.every == 0:
            self.points.append((at, value))
            if len(self.points) > POINTS:
                self.points = self.points[::2]
                self.every *= 2
        self.seen += 1


class Board:
    """What has been seen of every job so far. Thread-safe.

    Args:
        now: seconds since 1970.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self._lock = threading.Lock()
        self._latest: tuple[JobState, ...] = ()
        self._curves: dict[str, dict[str, _Curve]] = {}

    def show(self, *jobs: JobState) -> None:
        """Take in the jobs as they are now."""
        at = self.now()
        with self._lock:
            self._latest = jobs
            self._curves = {job.job: self._curves.get(job.job, {}) for job in jobs}
            for job in jobs:
                for name, value in (("loss", job.loss), ("average regret", job.average_regret)):
                    if value is not None:
                        self._curves[job.job].setdefault(name, _Curve()).add(at, value)

    def jobs(self) -> list[tuple[JobState, Curves]]:
        """Every job as last seen, and its curves."""
        with self._lock:
            return [
                (job, {name: list(curve.points) for name, curve in self._curves[job.job].items()})
                for job in self._latest
            ]

    def html(self) -> str:
        """The page."""
        now = self.now()
        body = "".join(_job(job, curves, now) for job, curves in self.jobs()) or "<p>No job yet.</p>"
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>adamserve</title>'
            f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n'
            f"<body><h1>adamserve</h1><main><p>{clock_time(now)} UTC</p>{body}</main>"
            f"<script>{SCRIPT}</script></body></html>\n"
        )

    def json(self) -> str:
        """The same numbers for programs."""
        return json.dumps([{**as_json(job), "curves": curves} for job, curves in self.jobs()])


def _job(job: JobState, curves: Curves, now: float) -> str:
    figures = [_curve(name, points) for name, points in curves.items()]
    figures += [_bars("staleness in updates", job.staleness)] if job.staleness else []
    pushers = silent_first(job.pushers)
    more = len(pushers) - NAMES_SHOWN
    return (
        f"<section><h2>{escape(job.job)}</h2>"
        f"<p>{' · '.join(f'{name} <b>{escape(text)}</b>' for name, text in facts(job))}</p>"
        + (f'<p class="bad">{escape(job.failed)}</p>' if job.failed else "")
        + f'<div class="row">{"".join(figures)}</div>'
        + _table(SHARD_HEAD, shard_rows(job))
        + f"<h3>{counted_pushers(pushers)}</h3>"
        + _table(PUSHER_HEAD, [pusher_row(pusher, now) for pusher in pushers[:NAMES_SHOWN]])
        + (f"<p>and {more} more, which pushed later than these</p>" if more > 0 else "")
        + "<h3>Events</h3>"
        + _table(EVENT_HEAD, [event_row(event) for event in job.events[: -EVENTS_SHOWN - 1 : -1]])
        + "</section>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "<p>None.</p>"
    marks = {"up": ' class="good"', "down": ' class="bad"'}
    cells = ("".join(f"<td{marks.get(cell, '')}>{escape(cell)}</td>" for cell in row) for row in rows)
    return (
        f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"
        + "".join(f"<tr>{row}</tr>" for row in cells)
        + "</table>"
    )


def _curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """A curve over time with a logarithmic axis, where the values allow one."""
    values = [value for _, value in points]
    heights = [math.log(value) for value in values] if min(values) > 0 else values
    low, span = min(heights), (max(heights) - min(heights)) or 1.0
    start, length = points[0][0], (points[-1][0] - points[0][0]) or 1.0
    drawn = " ".join(
        f"{300 * (at - start) / length:.1f},{115 - 105 * (height - low) / span:.1f}"
        for (at, _), height in zip(points, heights, strict=True)
    )
    caption = f"{escape(name)}: {values[0]:.4g} to {values[-1]:.4g} in {length:.0f} s"
    return (
        f'<figure><svg viewBox="0 0 300 120" preserveAspectRatio="none" role="img" aria-label="{caption}">'
        f'<polyline points="{drawn}"/></svg><figcaption>{caption}</figcaption></figure>'
    )


def _bars(name: str, counts: Mapping[int, int]) -> str:
    """A histogram, its last bar for everything above."""
    bars = histogram(counts)
    width, tallest = 300 / len(bars), max(bars)
    drawn = "".join(
        f'<rect x="{i * width:.1f}" y="{115 - 105 * count / tallest:.1f}" width="{0.8 * width:.1f}"'
        f' height="{105 * count / tallest:.1f}"/>'
        for i, count in enumerate(bars)
    )
    caption = f"{escape(name)}: 0 to {max(counts)}"
    return (
        f'<figure><svg viewBox="0 0 300 120" preserveAspectRatio="none" role="img" aria-label="{caption}">'
        f"{drawn}</svg><figcaption>{caption}</figcaption></figure>"
    )


def pages(board: Board) -> dict[str, Callable[[], tuple[str, str]]]:
    """The board's pages by path, for `adamserve.metrics.Exporter`."""
    return {
        "/": lambda: ("text/html; charset=utf-8", board.html()),
        "/status.json": lambda: ("application/json", board.json()),
    }
