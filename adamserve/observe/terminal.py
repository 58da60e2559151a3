"""A board in a terminal: what the status page shows, drawn with rich."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from adamserve.observe import words
from adamserve.observe.page import Board, Curves
from adamserve.observe.state import JobState

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Of a curve, in characters."""

PUSHERS_SHOWN, EVENTS_SHOWN = 10, 8


def drawn(board: Board) -> RenderableType:
    """Every job of the board."""
    now = board.now()
    jobs = [_job(job, curves, now) for job, curves in board.jobs()]
    return Group(Text(f"adamserve, {words.clock_time(now)} UTC"), *(jobs or [Text("No job yet.")]))


def text(board: Board) -> str:
    """The same as text, with colours where standard output is a terminal."""
    console = Console()
    with console.capture() as captured:
        console.print(drawn(board))
    return captured.get()


def _job(job: JobState, curves: Curves, now: float) -> RenderableType:
    parts: list[RenderableType] = [
        Rule(Text(job.job, "bold"), align="left"),
        Text("  ".join(f"{name} {text}" for name, text in words.facts(job))),
    ]
    if job.failed:
        parts.append(Text(job.failed, "bold red"))
    for name, points in curves.items():
        if len(points) > 1:
            parts.append(Text(f"{name:20} {sparkline([value for _, value in points])}  {words.ends(points)}"))
    if job.staleness:
        bars = blocks(words.histogram(job.staleness), low=0.0)
        parts.append(Text(f"{'staleness in updates':20} {bars}  0 to {max(job.staleness)}"))
    counted, pushers, more = words.pushers(job.pushers, now, PUSHERS_SHOWN)
    parts += [_table(words.shards(job)), Text(f"\n{counted}")]
    if job.pushers:
        parts.append(_table(pushers))
    if more:
        parts.append(Text(more))
    if job.events:
        parts += [Text(), _table(words.events(job, EVENTS_SHOWN))]
    return Group(*parts)


def _table(content: words.Table) -> RenderableType:
    marks = {"up": "green", "down": "bold red"}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    head, rows = content
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, marks.get(cell, "")) for cell in row))
    return table


def sparkline(values: Sequence[float]) -> str:
    """A curve in `WIDTH` characters at most, on a logarithmic axis where the values allow one."""
    step = max(1, math.ceil(len(values) / WIDTH))
    return blocks(words.heights(values[::-1][::step][::-1]))  # the last value is always there


def blocks(values: Sequence[float], low: float | None = None) -> str:
    """One character a value, as high as the value is between `low` (or the lowest) and the highest."""
    least = min(values) if low is None else low
    span = (max(values) - least) or 1.0
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * (value - least) / span)] for value in values)
