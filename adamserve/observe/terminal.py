"""A board in a terminal: what the status page shows, drawn with rich."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adamserve.observe.state import JobState
from adamserve.observe.words import (
    EVENT_HEAD,
    PUSHER_HEAD,
    SHARD_HEAD,
    clock_time,
    counted_pushers,
    event_row,
    facts,
    histogram,
    number,
    pusher_row,
    shard_rows,
    silent_first,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adamserve.observe.page import Board, Curves

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Of a curve, in characters."""

PUSHERS_SHOWN, EVENTS_SHOWN = 10, 8


def drawn(board: Board) -> RenderableType:
    """Every job of the board."""
    from rich.console import Group
    from rich.text import Text

    now = board.now()
    jobs = [_job(job, curves, now) for job, curves in board.jobs()]
    return Group(Text(f"adamserve, {clock_time(now)} UTC"), *(jobs or [Text("No job yet.")]))


def text(board: Board) -> str:
    """The same as text, with colours where standard output is a terminal."""
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        console.print(drawn(board))
    return captured.get()


def _job(job: JobState, curves: Curves, now: float) -> RenderableType:
    from rich.console import Group
    from rich.rule import Rule
    from rich.text import Text

    parts: list[RenderableType] = [
        Rule(Text(job.job, "bold"), align="left"),
        Text("  ".join(f"{name} {text}" for name, text in facts(job))),
    ]
    if job.failed:
        parts.append(Text(job.failed, "bold red"))
    for name, points in curves.items():
        if len(points) < 2:
            continue
        values = [value for _, value in points]
        seconds = points[-1][0] - points[0][0]
        ends = f"{number(values[0])} to {number(values[-1])} in {seconds:.0f} s"
        parts.append(Text(f"{name:20} {sparkline(values)}  {ends}"))
    if job.staleness:
        bars = blocks([float(count) for count in histogram(job.staleness)], low=0.0)
        parts.append(Text(f"{'staleness in updates':20} {bars}  0 to {max(job.staleness)}"))
    parts.append(_table(SHARD_HEAD, shard_rows(job)))
    pushers = silent_first(job.pushers)
    parts.append(Text(f"\n{counted_pushers(pushers)}"))
    if pushers:
        parts.append(_table(PUSHER_HEAD, [pusher_row(p, now) for p in pushers[:PUSHERS_SHOWN]]))
    if len(pushers) > PUSHERS_SHOWN:
        parts.append(Text(f"and {len(pushers) - PUSHERS_SHOWN} more, which pushed later than these"))
    if job.events:
        parts.append(Text())
        newest = job.events[: -EVENTS_SHOWN - 1 : -1]
        parts.append(_table(EVENT_HEAD, [event_row(event) for event in newest]))
    return Group(*parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    marks = {"up": "green", "down": "bold red"}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, marks.get(cell, "")) for cell in row))
    return table


def sparkline(values: Sequence[float]) -> str:
    """A curve in `WIDTH` characters at most, on a logarithmic axis where the values allow one."""
    step = max(1, math.ceil(len(values) / WIDTH))
    kept = list(values[::-1][::step][::-1])  # the last value is always there
    return blocks([math.log(value) for value in kept] if min(kept) > 0 else kept)


def blocks(values: Sequence[float], low: float | None = None) -> str:
    """One character a value, as high as the value is between `low` (or the lowest) and the highest."""
    least = min(values) if low is None else low
    span = (max(values) - least) or 1.0
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * (value - least) / span)] for value in values)
