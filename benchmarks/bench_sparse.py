"""What a push by rows costs: against the table's size, the dense push, lazy rows, and the gap since a row's last turn.

    python benchmarks/bench_sparse.py [--rows 10000000] [--repeats 30] [--json]

Everything runs in one process, on `Shard`s without a transport, whose cost would hide the differences. Sides that are
compared take turns; figures are medians, but for the Zipf stream, where they are sums over the whole stream.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import numpy as np

from adamserve import SparseRows, optim
from adamserve.shard.consistency import Async
from adamserve.shard.geometry import partition
from adamserve.shard.shard import Shard
from adamserve.values import Gradient, Push, ShardState, Stamp, TensorSpec

WIDTH = 16
NAMED = 1000
TARGETS = {
    "table of 10 M rows / of 10 k": ("at most", 3.0),
    "dense push / push by rows": ("at least", 100.0),
    "exact / lazy on a Zipf stream": ("at most", 3.0),
    "gap of 10^6 / of 10^3": ("at most", 2.0),
}


class Table:
    """One shard with one table, and its pushes."""

    def __init__(self, rows: int, rule: optim.Rule, *, exact: bool = True) -> None:
        spec = TensorSpec("table", (rows, WIDTH))
        rng = np.random.default_rng(0)
        w = rng.standard_normal(spec.numel, np.float32)
        state = ShardState(0, Stamp(1, 0), (), {"w": {"table": w}})
        self.rows = rows
        self.seq = 0
        self.shard = Shard(
            partition=partition([spec], 1), state=state, rule=rule, consistency=Async(), exact=exact
        )
        self.shard.join("a", lease_s=1e9)

    def push(self, gradient: Gradient) -> float:
        """Push; returns the seconds."""
        self.seq += 1
        push = Push("a", self.seq, self.shard.stamp, {"table": gradient})
        began = time.perf_counter()
        self.shard.offer(self.shard.check(push))
        return time.perf_counter() - began


def uniform(rng: np.random.Generator, rows: int) -> SparseRows:
    """Distinct rows in no order."""
    named = (
        rng.permutation(rows)[:NAMED]
        if rows <= 100_000
        else rng.permutation(np.unique(rng.integers(0, rows, NAMED)))
    )
    return SparseRows(named, rng.standard_normal((len(named), WIDTH), np.float32))


def zipf(rng: np.random.Generator, cumulative: Any) -> SparseRows:
    named = np.searchsorted(cumulative, rng.random(NAMED) * cumulative[-1])
    return SparseRows(named, rng.standard_normal((len(named), WIDTH), np.float32))


def sizes(rows: int, repeats: int, rule: optim.Rule) -> dict[str, float]:
    """A push of 1,000 rows into a large table and a small one, and the large table's dense push; seconds."""
    large, small = Table(rows, rule), Table(10_000, rule)
    rng = np.random.default_rng(1)
    dense = rng.standard_normal(rows * WIDTH, np.float32)
    whole = [large.push(dense) for _ in range(4)][1:]
    small.push(dense[: 10_000 * WIDTH])
    times: dict[str, list[float]] = {"large": [], "small": []}
    for i in range(repeats + 5):
        for name, table in (("large", large), ("small", small)):
            seconds = table.push(uniform(rng, table.rows))
            if i >= 5:
                times[name].append(seconds)
    return {**{name: median(found) for name, found in times.items()}, "dense": median(whole)}


def modes(rows: int, pushes: int, rule: optim.Rule) -> dict[str, float]:
    """The same Zipf stream into an exact and a lazy table; seconds in all."""
    tables = {"exact": Table(rows, rule), "lazy": Table(rows, rule, exact=False)}
    rng = np.random.default_rng(2)
    cumulative = np.cumsum(1.0 / np.arange(1, rows + 1))
    dense = rng.standard_normal(rows * WIDTH, np.float32)
    for table in tables.values():
        table.push(dense)
    times = dict.fromkeys(tables, 0.0)
    for i in range(pushes):
        gradient = zipf(rng, cumulative)
        for name, table in tables.items():
            seconds = table.push(gradient)
            if i >= 5:
                times[name] += seconds
    return times


def gaps(repeats: int, long: int, rule: optim.Rule) -> dict[str, float]:
    """A push of 1,000 rows that had their last gradient a number of updates ago; seconds."""
    times = {}
    for gap in (1000, long):
        table = Table(NAMED * repeats, rule)
        rng = np.random.default_rng(3)
        table.push(rng.standard_normal(NAMED * repeats * WIDTH, np.float32))
        nothing = SparseRows(np.empty(0, np.int64), np.empty((0, WIDTH), np.float32))
        for _ in range(gap):
            table.push(nothing)
        batches = rng.permutation(NAMED * repeats).reshape(repeats, NAMED)
        values = rng.standard_normal((NAMED, WIDTH), np.float32)
        found = [table.push(SparseRows(np.sort(batch), values)) for batch in batches]
        times[str(gap)] = median(found[2:])
    return times


def measure(rows: int, repeats: int, long: int, rule: optim.Rule) -> dict[str, Any]:
    size = sizes(rows, repeats, rule)
    mode = modes(max(1000, rows // 10), 10 * repeats, rule)
    gap = gaps(repeats, long, rule)
    ratios = {
        "table of 10 M rows / of 10 k": size["large"] / size["small"],
        "dense push / push by rows": size["dense"] / size["large"],
        "exact / lazy on a Zipf stream": mode["exact"] / mode["lazy"],
        "gap of 10^6 / of 10^3": gap[str(long)] / gap["1000"],
    }
    return {
        "rule": type(rule).__name__,
        "rows": rows,
        "gap": long,
        "seconds": {**size, **mode, **gap},
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--gap", type=int, default=1_000_000)
    parser.add_argument("--rule", choices=sorted(optim.RULES), default="Adam")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rule = optim.by_name(options.rule)
    result = measure(options.rows, options.repeats, options.gap, rule)
    result["targets"] = {name: list(target) for name, target in TARGETS.items()}
    if options.json:
        print(json.dumps(result))
        return
    for name, seconds in result["seconds"].items():
        print(f"{name:8} {1e3 * seconds:9.3f} ms")
    for name, ratio in result["ratios"].items():
        kind, limit = TARGETS[name]
        met = ratio <= limit if kind == "at most" else ratio >= limit
        print(f"{name:32} {ratio:8.2f}  ({kind} {limit:g}: {'met' if met else 'missed'})")


if __name__ == "__main__":
    main()
