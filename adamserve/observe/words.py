"""A job's state in words: what the status page and the terminal both say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from adamserve.observe.families import ACCURACY, BOUND, OUTCOMES
from adamserve.observe.state import JobState
from adamserve.shard.statistics import PusherStatistics

BARS = 41
"""Of a histogram; the last one is for everything above, too."""

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Its head and its rows."""

Points = Sequence[tuple[float, float]]
"""A curve: moments in seconds, and values."""


def facts(job: JobState) -> list[tuple[str, str]]:
    """What is known of a job as a whole, by name."""
    age = job.checkpoint_age_s
    named = [
        ("state", job.state),
        ("rule", f"{job.rule} at rate {job.rate:.3g}" if job.rule else ""),
        ("loss", number(job.loss)),
        ("best loss", number(job.best_loss)),
        ("R(T)/T", number(job.average_regret)),
        ("test accuracy", number(job.numbers.get(ACCURACY), ".2%")),
        ("updates/s", number(job.updates_per_s, ".3g")),
        ("rollbacks", str(len(job.rollbacks))),
        *(
            (name, number(value))
            for name, value in sorted(job.numbers.items())
            if name not in (ACCURACY, BOUND)
        ),
        ("checkpoint", f"{job.checkpoint}, {age:.0f} s ago" if job.checkpoint and age is not None else ""),
    ]
    return [(name, text) for name, text in named if text]


def shards(job: JobState) -> Table:
    """A row a shard."""
    head = ("shard", "", "incarnation", "clock", *(o.lower() for o in OUTCOMES), "waiting", "MB")
    rows = [
        [
            str(shard.shard),
            "down" if shard.shard in job.down else "up",
            str(shard.stamp.incarnation),
            str(shard.stamp.clock),
            *(str(shard.pushes.get(outcome, 0)) for outcome in OUTCOMES),
            str(shard.waiting),
            f"{shard.state_bytes / 1e6:.1f}",
        ]
        for shard in job.shards
    ]
    return head, rows


def pushers(everyone: Sequence[PusherStatistics], now: float, most: int) -> tuple[str, Table, str]:
    """How many there are; a row for each of the `most` that have been silent the longest; and what is left out."""
    silent_first = sorted(everyone, key=lambda pusher: (pusher.pushed_at or 0.0, pusher.name))
    rows = [
        (
            pusher.name,
            "none yet" if pusher.pushed_at is None else f"{max(0.0, now - pusher.pushed_at):.1f} s ago",
            str(pusher.seq),
        )
        for pusher in silent_first[:most]
    ]
    more = len(everyone) - most
    return (
        "1 pusher" if len(everyone) == 1 else f"{len(everyone)} pushers",
        (("pusher", "last push", "seq"), rows),
        f"and {more} more, which pushed later than these" if more > 0 else "",
    )


def events(job: JobState, most: int) -> Table:
    """A row an event, the newest first."""
    rows = [
        (
            clock_time(event.at),
            event.kind,
            " ".join(map(str, event.shards)),
            event.pusher,
            str(event.count),
            event.reason,
        )
        for event in job.events[: -most - 1 : -1]
    ]
    return ("UTC", "event", "shards", "pusher", "times", "reason"), rows


def histogram(counts: Mapping[int, int]) -> list[int]:
    """How many of each value from 0 up."""
    bars = [0] * min(max(counts) + 1, BARS)
    for value, count in counts.items():
        bars[min(value, len(bars) - 1)] += count
    return bars


def ends(points: Points) -> str:
    """A curve's first and last value, and the time between them."""
    (start, first), (end, last) = points[0], points[-1]
    return f"{first:.4g} to {last:.4g} in {end - start:.0f} s"


def heights(values: Sequence[float]) -> Sequence[float]:
    """The values on a logarithmic axis, where they allow one."""
    return [math.log(value) for value in values] if min(values) > 0 else values


def number(value: float | None, form: str = ".4g") -> str:
    """Written so; "" for none."""
    return "" if value is None else format(value, form)


def clock_time(at: float) -> str:
    """The time of day, UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"
