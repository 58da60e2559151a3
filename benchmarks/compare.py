"""A benchmark in this checkout and in another, in turn, and the ratio of each of its figures.

    git worktree add /tmp/before REVISION
    python benchmarks/compare.py /tmp/before --pairs 7 -- bench_rules.py --sizes 25e6 --json

A pair runs both checkouts one after the other, and they take turns to be first, so what else the machine does falls on
both. A figure is any number in the JSON that the benchmark prints. Its ratio is this checkout over the other: the
geometric mean over the pairs, with Student's 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

HERE = Path(__file__).parents[1]


def run(checkout: Path, command: Sequence[str]) -> dict[str, float]:
    """Run a benchmark of a checkout; its figures by their paths in the JSON."""
    script, *options = command
    done = subprocess.run(
        [sys.executable, str(checkout / "benchmarks" / script), *options],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(figures(json.loads(done.stdout[done.stdout.index("{") :])))


def figures(found: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every positive number in a JSON document, and its path."""
    if isinstance(found, dict):
        for name, value in found.items():
            yield from figures(value, f"{path} / {name}" if path else name)
    elif isinstance(found, list):
        for index, value in enumerate(found):
            yield from figures(value, f"{path}[{index}]")
    elif isinstance(found, int | float) and not isinstance(found, bool) and found > 0:
        yield path, float(found)


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of ratios, and the ends of its 95 % interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = math.fsum(logs) / len(logs)
    spread = math.sqrt(math.fsum((log - mean) ** 2 for log in logs) / (len(logs) - 1) / len(logs))
    reach = float(stats.t.ppf(0.975, len(logs) - 1)) * spread
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("command", nargs="+", help="file in benchmarks/, and its options")
    arguments = parser.parse_args()
    here: list[dict[str, float]] = []
    other: list[dict[str, float]] = []
    for pair in range(arguments.pairs):
        sides = [(HERE, here), (arguments.other.resolve(), other)]
        for checkout, kept in sides if pair % 2 else reversed(sides):
            kept.append(run(checkout, arguments.command))
        print(f"pair {pair + 1} of {arguments.pairs}", file=sys.stderr, flush=True)
    print(f"`{' '.join(arguments.command)}`, {arguments.pairs} pairs\n")
    print("| figure | before | now | now / before | 95 % |\n|---|---|---|---|---|")
    for name in here[0]:
        if all(name in one for one in (*here, *other)):
            now, before = [one[name] for one in here], [one[name] for one in other]
            if len({*now, *before}) == 1:
                continue  # what was asked for, and no figure
            mean, low, high = interval([a / b for a, b in zip(now, before, strict=True)])
            middle = f"{sorted(before)[len(before) // 2]:.4g} | {sorted(now)[len(now) // 2]:.4g}"
            print(f"| {name} | {middle} | {mean:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
