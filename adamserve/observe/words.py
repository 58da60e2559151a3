"""A job's state in words: what the status page and the terminal both say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from adamserve.observe.families import ACCURACY, BOUND, JOB_FAMILIES, OUTCOMES
from adamserve.observe.state import JobState
from adamserve.shard.events import Event
from adamserve.shard.statistics import PusherStatistics

SHARD_HEAD = (
    "shard",
    "",
    "incarnation",
    "clock",
    *(outcome.lower() for outcome in OUTCOMES),
    "waiting",
    "MB",
)
PUSHER_HEAD = ("pusher", "last push", "seq")
EVENT_HEAD = ("UTC", "event", "shards", "pusher", "times", "reason")

BARS = 41
"""Of a histogram; the last one is for everything above, too."""


def facts(job: JobState) -> list[tuple[str, str]]:
    """What is known of a job as a whole, by name."""
    age = job.checkpoint_age_s
    numbers = [
        (family.word, format(sample, family.form))
        for family in JOB_FAMILIES
        if family.word
        for _, sample in family.read(job)
    ]
    named = [
        ("state", job.state),
        ("rule", f"{job.rule} at rate {job.rate:.3g}" if job.rule else ""),
        *numbers,
        *(
            (name, number(value))
            for name, value in sorted(job.numbers.items())
            if name not in (ACCURACY, BOUND)
        ),
        ("checkpoint", f"{job.checkpoint}, {age:.0f} s ago" if job.checkpoint and age is not None else ""),
    ]
    return [(name, text) for name, text in named if text]


def shard_rows(job: JobState) -> list[list[str]]:
    """Under `SHARD_HEAD`."""
    return [
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


def pusher_row(pusher: PusherStatistics, now: float) -> list[str]:
    """Under `PUSHER_HEAD`."""
    last = "none yet" if pusher.pushed_at is None else f"{max(0.0, now - pusher.pushed_at):.1f} s ago"
    return [pusher.name, last, str(pusher.seq)]


def event_row(event: Event) -> list[str]:
    """Under `EVENT_HEAD`."""
    shards = " ".join(map(str, event.shards))
    return [clock_time(event.at), event.kind, shards, event.pusher, str(event.count), event.reason]


def silent_first(pushers: Iterable[PusherStatistics]) -> Sequence[PusherStatistics]:
    """Those that have not pushed for the longest time first."""
    return sorted(pushers, key=lambda pusher: (pusher.pushed_at or 0.0, pusher.name))


def counted_pushers(pushers: Sequence[PusherStatistics]) -> str:
    """How many."""
    return "1 pusher" if len(pushers) == 1 else f"{len(pushers)} pushers"


def histogram(counts: Mapping[int, int]) -> list[int]:
    """How many of each value from 0 up."""
    bars = [0] * min(max(counts) + 1, BARS)
    for value, count in counts.items():
        bars[min(value, len(bars) - 1)] += count
    return bars


def number(value: float | None) -> str:
    """Four digits; "" for none."""
    return "" if value is None else f"{value:.4g}"


def clock_time(at: float) -> str:
    """The time of day, UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"
