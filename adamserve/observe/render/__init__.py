"""The dashboards without Grafana: a picture a panel, and all of them in one HTML document that needs nothing else."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from string import Template

from adamserve.errors import InvalidArgument, NotFound
from adamserve.observe.dashboards import DASHBOARDS, Dashboard
from adamserve.observe.render.figure import named, png
from adamserve.observe.render.prometheus import Prometheus, Series, Window, time_range, variables
from adamserve.observe.templates import filled
from adamserve.values import Deadline

POINTS = 300
"""Of a line, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A panel, drawn.

    Attributes:
        dashboard, title: of the panel.
        queries: what Prometheus was asked, variables filled in.
        lines: how many came back; 0 is "no data", and the picture says so.
        png: the picture.
    """

    dashboard: Dashboard
    title: str
    queries: tuple[str, ...]
    lines: int
    png: bytes

    @property
    def file(self) -> str:
        """A name for it."""
        words = f"{self.dashboard.uid.removeprefix('adamserve-')} {self.title}".lower()
        return f"{re.sub(r'[^a-z0-9]+', '-', words).strip('-')}.png"


def render(
    url: str,
    out: Path,
    *,
    start: str | None,
    end: str | None,
    last: str,
    dashboards: Sequence[str] = (),
    jobs: Sequence[str] = (),
    timeout_s: float,
) -> tuple[list[Picture], Window]:
    """Draw panels into the folder `out`, and write its index.html.

    Args:
        url: of a Prometheus.
        start, end, last: the range of time, as for `prometheus.time_range`.
        dashboards, jobs: by name; all without any.
        timeout_s: longest that all queries together may take.

    Raises:
        AdamServeError: an argument is wrong, or Prometheus does not answer; names the argument.
    """
    by_name = {board.uid.removeprefix("adamserve-"): board for board in DASHBOARDS}
    chosen = [name.removeprefix("adamserve-") for name in dashboards] or list(by_name)
    for name in chosen:
        if name not in by_name:
            raise NotFound(
                f"there is none called {name!r}", field="dashboard", fix=f"one of {', '.join(by_name)}"
            )
    index = out / "index.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        index.touch()
    except OSError as error:
        raise InvalidArgument(
            f"{out} cannot be written: {error.strerror}", field="out", fix="choose another folder"
        ) from None
    since, until = time_range(start, end, last, time.time())
    prometheus = Prometheus(url, Deadline.after(timeout_s))
    scrape_s = prometheus.scrape_interval()
    window = Window(since, until, max((until - since) / POINTS, scrape_s))
    known = prometheus.jobs(window)
    for name in jobs:
        if name not in known:
            raise NotFound(
                f"Prometheus has seen no job {name!r} in that time",
                field="job",
                fix=f"it has seen {', '.join(known) or 'none'}",
            )
    values = variables(window, scrape_s, jobs)
    boards = {
        board.title: [_picture(prometheus, board, title, window, values) for title in board.panels]
        for board in map(by_name.__getitem__, chosen)
    }
    pictures = list(chain.from_iterable(boards.values()))
    for picture in pictures:
        (out / picture.file).write_bytes(picture.png)
    times = [f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}" for at in (since, until)]
    index.write_text(filled("render/index.html.j2", times=times, boards=boards, b64encode=b64encode))
    return pictures, window


def _picture(
    prometheus: Prometheus, dashboard: Dashboard, title: str, window: Window, values: Mapping[str, str]
) -> Picture:
    """Ask for a panel's lines and draw them."""
    panel = dashboard.panels[title]
    queries = {legend: Template(expr).safe_substitute(values) for legend, expr in panel.queries.items()}
    lines: list[tuple[str, Series]] = []
    missing: list[str] = []
    for legend, expr in queries.items():
        answer = prometheus.lines(expr, window, field=f"{dashboard.title}: {title}")
        lines += [(named(legend, line), line) for line in answer]
        if not answer:
            missing.append(legend)
    content = png(title, panel, lines, missing, window)
    return Picture(
        dashboard=dashboard, title=title, queries=tuple(queries.values()), lines=len(lines), png=content
    )
