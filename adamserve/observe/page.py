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

from adamserve.observe.state import JobState, as_json
from adamserve.observe.templates import filled
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
        jobs = [_section(job, curves, now) for job, curves in self.jobs()]
        return filled("page.html.j2", time=clock_time(now), jobs=jobs, refresh_ms=round(1000 * REFRESH_S))

    def json(self) -> str:
        """The same numbers for programs."""
        return json.dumps([{**as_json(job), "curves": curves} for job, curves in self.jobs()])


def _section(job: JobState, curves: Curves, now: float) -> dict[str, object]:
    """What the template says of a job."""
    pushers = silent_first(job.pushers)
    figures = [_curve(name, points) for name, points in curves.items()]
    figures += [_histogram("staleness in updates", job.staleness)] if job.staleness else []
    return {
        "name": job.job,
        "facts": facts(job),
        "failed": job.failed,
        "figures": figures,
        "shards": (SHARD_HEAD, shard_rows(job)),
        "counted": counted_pushers(pushers),
        "pushers": (PUSHER_HEAD, [pusher_row(pusher, now) for pusher in pushers[:NAMES_SHOWN]]),
        "more": len(pushers) - NAMES_SHOWN,
        "events": (EVENT_HEAD, [event_row(event) for event in job.events[: -EVENTS_SHOWN - 1 : -1]]),
    }


@dataclass(frozen=True, slots=True)
class _Figure:
    """A picture of 300 by 120.

    Attributes:
        caption: what it shows.
        line: points of a curve, as SVG writes them.
        bars: x, y, width and height of each.
    """

    caption: str
    line: str = ""
    bars: Sequence[tuple[str, ...]] = ()


def _curve(name: str, points: Sequence[tuple[float, float]]) -> _Figure:
    """A curve over time with a logarithmic axis, where the values allow one."""
    values = [value for _, value in points]
    heights = [math.log(value) for value in values] if min(values) > 0 else values
    low, span = min(heights), (max(heights) - min(heights)) or 1.0
    start, length = points[0][0], (points[-1][0] - points[0][0]) or 1.0
    line = " ".join(
        f"{300 * (at - start) / length:.1f},{115 - 105 * (height - low) / span:.1f}"
        for (at, _), height in zip(points, heights, strict=True)
    )
    return _Figure(f"{name}: {values[0]:.4g} to {values[-1]:.4g} in {length:.0f} s", line=line)


def _histogram(name: str, counts: Mapping[int, int]) -> _Figure:
    """How many of each value there are, the last bar for everything above."""
    numbers = histogram(counts)
    width, tallest = 300 / len(numbers), max(numbers)
    heights = [105 * number / tallest for number in numbers]
    bars = [(i * width, 115 - height, 0.8 * width, height) for i, height in enumerate(heights)]
    texts = [tuple(f"{number:.1f}" for number in bar) for bar in bars]
    return _Figure(f"{name}: 0 to {max(counts)}", bars=texts)


def pages(board: Board) -> dict[str, Callable[[], tuple[str, str]]]:
    """The board's pages by path, for `Exporter`."""
    return {
        "/": lambda: ("text/html; charset=utf-8", board.html()),
        "/status.json": lambda: ("application/json", board.json()),
    }
