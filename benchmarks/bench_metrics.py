"""What metrics cost: a push with and without scrapes, a scrape of many tensors, and how long it keeps pushes waiting.

    python benchmarks/bench_metrics.py [--blocks 40] [--seconds 1.0] [--tensors 1000] [--json]

A shard's host in this process, pushed to without a transport, whose cost would hide the differences; a scraper in
another process, which asks over HTTP once in each block "on". Blocks take turns, on and off, and so does their order.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from adamserve import optim
from adamserve.edge.publishing import EncodedPublisher
from adamserve.observe.exporter import Exporter, Reading
from adamserve.observe.families import RPC_FAMILIES, SHARD_FAMILIES
from adamserve.observe.rpc_counts import Calls
from adamserve.shard.consistency import Async
from adamserve.shard.durations import PUSH_BUCKETS, Stopwatch
from adamserve.shard.geometry import partition
from adamserve.shard.host import ShardHost
from adamserve.shard.shard import Shard
from adamserve.values import Array, Deadline, Push, ShardState, Stamp, TensorSpec

SMALL = (4, 2500)
"""Tensors and elements of each, of the shard whose pushes are compared: small, so that a fixed cost shows."""

ELEMENTS = 1000
"""Of each tensor of the shard that is scraped."""

TARGETS = {
    "push, scraped / not scraped": ("at most", 1.02),
    "counting / push": ("at most", 0.02),
    "longest push beside a scrape, ms more": ("at most", 1.0),
    "scrape, ms": ("at most", 50.0),
    "scrape while pushed to, ms": ("at most", 50.0),
    "writer held by a scrape, ms": ("at most", 1.0),
    "look at an update, ms": ("at most", 1.0),
}

SCRAPER = """
import sys, time, urllib.request
for line in sys.stdin:
    began = time.perf_counter()
    urllib.request.urlopen(sys.argv[1]).read()
    print(time.perf_counter() - began, flush=True)
"""


class Pushed:
    """A shard and its pusher."""

    def __init__(self, tensors: int, elements: int) -> None:
        specs = [TensorSpec(f"t{i}", (elements,)) for i in range(tensors)]
        parts = partition(specs, 1)
        rng = np.random.default_rng(0)
        initial = {spec.name: rng.standard_normal(elements, np.float32) for spec in specs}
        self.shard = Shard(
            partition=parts,
            state=ShardState(0, Stamp(1, 0), (), {"w": initial}),
            rule=optim.Adam(lr=1e-3),
            consistency=Async(),
        )
        self.host = ShardHost(self.shard, EncodedPublisher())
        self.host.join("a", lease_s=1e9)
        self.gradients: dict[str, Array] = {
            spec.name: rng.standard_normal(elements, np.float32) for spec in specs
        }
        self.seq = 0

    def push(self) -> None:
        """Push once."""
        self.seq += 1
        push = Push("a", self.seq, self.shard.stamp, self.gradients)
        self.host.push(push, deadline=Deadline.after(60))

    def push_for(self, seconds: float) -> tuple[float, float]:
        """Push for so long; returns the mean seconds of a push, and the longest."""
        began = now = time.perf_counter()
        times = [began]
        while now - began < seconds:
            self.push()
            now = time.perf_counter()
            times.append(now)
        return (now - began) / (len(times) - 1), max(b - a for a, b in pairwise(times))


class Scraper:
    """Another process that scrapes when it is told to."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRAPER, f"http://127.0.0.1:{port}/metrics"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.scrape()

    def begin(self) -> None:
        """Scrape, beside what happens here."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> float:
        """Wait for the scrape that was begun; returns its seconds."""
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def scrape(self) -> float:
        """Scrape; returns the seconds."""
        self.begin()
        return self.end()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextmanager
def scraped(pushed: Pushed) -> Iterator[Scraper]:
    """The shard's metrics on a port, as its process serves them, and who asks for them."""
    collect = [
        Reading(SHARD_FAMILIES, lambda: [("bench", pushed.host.glance())]),
        Reading(RPC_FAMILIES, lambda: [Calls()]),
    ]
    exporter = Exporter("127.0.0.1", 0, process="shard", collect=collect)
    scraper = Scraper(exporter.port)
    try:
        yield scraper
    finally:
        scraper.close()
        exporter.close()


def compare(blocks: int, seconds: float) -> dict[str, Any]:
    """Pushes to a small shard, in blocks with one scrape each and in blocks without."""
    pushed = Pushed(*SMALL)
    pushed.push_for(seconds)
    means: dict[bool, list[float]] = {True: [], False: []}
    longest: dict[bool, list[float]] = {True: [], False: []}
    with scraped(pushed) as scraper:
        for block in range(blocks):
            for on in (True, False) if block % 2 else (False, True):
                if on:
                    scraper.begin()
                mean, worst = pushed.push_for(seconds)
                if on:
                    scraper.end()
                means[on].append(mean)
                longest[on].append(worst)
    return {
        "ratio": median(on / off for on, off in zip(means[True], means[False], strict=True)),
        "push_us": {"on": 1e6 * median(means[True]), "off": 1e6 * median(means[False])},
        "longest_push_ms": {
            name: {"median": 1e3 * median(longest[on]), "of nine in ten": 1e3 * _nine_in_ten(longest[on])}
            for name, on in (("on", True), ("off", False))
        },
    }


def _nine_in_ten(values: list[float]) -> float:
    return float(np.percentile(values, 90))


def timed(act: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each call."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return times


def counting_us() -> float:
    """What a push pays for its counts, in microseconds: three durations and a call, with their clocks."""
    watch, calls, times = Stopwatch(PUSH_BUCKETS), Calls(), 10_000
    began = time.perf_counter()
    for _ in range(times):
        calls.started("Push")
        for _ in range(3):
            first = time.perf_counter()
            watch.add(time.perf_counter() - first)
        calls.handled("Push", "OK")
    return 1e6 * (time.perf_counter() - began) / times


def scrape(tensors: int, repeats: int) -> dict[str, float]:
    """Scrapes of a shard with many tensors, at rest and under pushes; and what they do to those, in milliseconds."""
    pushed = Pushed(tensors, ELEMENTS)
    for _ in range(3):
        pushed.push()
    with scraped(pushed) as scraper:
        rest = [scraper.scrape() for _ in range(repeats)]
        busy = []
        for _ in range(repeats):
            scraper.begin()
            pushed.push_for(0.1)
            busy.append(scraper.end())

    def held() -> None:
        with pushed.host._changed:
            pushed.shard.statistics()

    dense: Any = {name: pushed.shard.check(_push(pushed)).gradients[name] for name in pushed.gradients}

    def look() -> None:
        pushed.shard.store.probe.begin(dense, ())
        pushed.shard.store.probe.end()

    look()
    return {
        "at_rest": 1e3 * median(rest),
        "while_pushed_to": 1e3 * median(busy),
        "worst_while_pushed_to": 1e3 * max(busy),
        "writer_held": 1e3 * max(timed(held, 20 * repeats)),
        "look": 1e3 * median(timed(look, 20 * repeats)),
    }


def _push(pushed: Pushed) -> Push:
    return Push("a", pushed.seq + 1, pushed.shard.stamp, pushed.gradients)


def measure(blocks: int, seconds: float, tensors: int) -> dict[str, Any]:
    """Everything, with the targets."""
    compared = compare(blocks, seconds)
    counting = counting_us()
    ms = scrape(tensors, max(5, blocks))
    longest = compared["longest_push_ms"]
    ratios = {
        "push, scraped / not scraped": compared["ratio"],
        "counting / push": counting / compared["push_us"]["off"],
        "longest push beside a scrape, ms more": longest["on"]["of nine in ten"]
        - longest["off"]["of nine in ten"],
        "scrape, ms": ms["at_rest"],
        "scrape while pushed to, ms": ms["while_pushed_to"],
        "writer held by a scrape, ms": ms["writer_held"],
        "look at an update, ms": ms["look"],
    }
    return {
        "tensors": tensors,
        "blocks": blocks,
        "compared": compared,
        "counting_us": counting,
        "ms": ms,
        "ratios": {name: round(value, 4) for name, value in ratios.items()},
        "targets": {name: f"{word} {value:g}" for name, (word, value) in TARGETS.items()},
        "met": {name: ratios[name] <= value for name, (_, value) in TARGETS.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=40, help="pairs of blocks, and scrapes")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a block")
    parser.add_argument("--tensors", type=int, default=1000, help="of the shard that is scraped")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    result = measure(arguments.blocks, arguments.seconds, arguments.tensors)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result["ratios"].items():
        print(
            f"{name:30} {value:8.4f}  {result['targets'][name]}: {'met' if result['met'][name] else 'missed'}"
        )
    print(
        json.dumps({**result["compared"], "counting_us": result["counting_us"], "ms": result["ms"]}, indent=1)
    )


if __name__ == "__main__":
    main()
