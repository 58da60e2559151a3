"""The status page: one HTML document with the numbers and curves of every job in it, and nothing from elsewhere.

It works without JavaScript; with it, the numbers move.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from adamserve.observe import words
from adamserve.observe.state import JobState, as_json
from adamserve.observe.templates import filled

POINTS = 400
"""Points of a curve kept: beyond these every other one is dropped, and the next ones come half as often."""

PUSHERS_SHOWN, EVENTS_SHOWN = 50, 20
REFRESH_MS = 2000

Curves = dict[str, words.Points]


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
    """What has been seen of every job so far; `now` gives seconds since 1970. Thread-safe."""

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
        return filled("page.html.j2", time=words.clock_time(now), jobs=jobs, refresh_ms=REFRESH_MS)

    def json(self) -> str:
        """The same numbers for programs."""
        return json.dumps([{**as_json(job), "curves": curves} for job, curves in self.jobs()])


def _section(job: JobState, curves: Curves, now: float) -> dict[str, object]:
    """What the template says of a job; a figure is a caption, the line of a curve, and the bars of a histogram."""
    figures: list[tuple[str, str, Sequence[tuple[str, ...]]]] = [
        (f"{name}: {words.ends(points)}", _line(points), ()) for name, points in curves.items()
    ]
    if job.staleness:
        caption = f"staleness in updates: 0 to {max(job.staleness)}"
        figures.append((caption, "", _bars(words.histogram(job.staleness))))
    return {
        "name": job.job,
        "facts": words.facts(job),
        "failed": job.failed,
        "figures": figures,
        "shards": words.shards(job),
        "pushers": words.pushers(job.pushers, now, PUSHERS_SHOWN),
        "events": words.events(job, EVENTS_SHOWN),
    }


def _line(points: words.Points) -> str:
    """A curve over time in 300 by 120, as SVG writes its points."""
    heights = words.heights([value for _, value in points])
    low, span = min(heights), (max(heights) - min(heights)) or 1.0
    start, length = points[0][0], (points[-1][0] - points[0][0]) or 1.0
    return " ".join(
        f"{300 * (at - start) / length:.1f},{115 - 105 * (height - low) / span:.1f}"
        for (at, _), height in zip(points, heights, strict=True)
    )


def _bars(counts: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """A histogram in 300 by 120: x, y, width and height of each bar."""
    width, tallest = 300 / len(counts), max(counts)
    heights = [105 * count / tallest for count in counts]
    bars = [(i * width, 115 - height, 0.8 * width, height) for i, height in enumerate(heights)]
    return tuple(tuple(f"{number:.1f}" for number in bar) for bar in bars)


def pages(board: Board) -> dict[str, Callable[[], tuple[str, str]]]:
    """The board's pages by path, for `Exporter`."""
    return {
        "/": lambda: ("text/html; charset=utf-8", board.html()),
        "/status.json": lambda: ("application/json", board.json()),
    }
