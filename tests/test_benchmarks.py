"""The benchmarks run, at a size that measures nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_bench_rules() -> None:
    result = run("benchmarks/bench_rules.py", "--sizes", "1000", "--repeats", "1")
    [size] = result["sizes"]
    assert len(size["rules"]) == 9
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in size["rules"].values())
    assert {name: row["bytes"] for name, row in size["rules"].items()} == {
        "Adam": 28, "AdaMax": 28, "SGD": 20, "Nesterov": 20, "AdaGrad": 20, "RMSProp": 20,
        "NesterovRMSProp": 28, "LpAdam(p=2)": 28, "LpAdam(p=3)": 28,
    }  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_bench_roundtrip() -> None:
    result = run("benchmarks/bench_roundtrip.py", "--elements", "8000", "--repeats", "1")
    assert result["ratio"] > 0
    assert set(result["median_s"]) == {"adamserve", "push", "pull", "pattern", "pattern_lean"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bench_grpc() -> None:
    result = run("benchmarks/bench_grpc.py", "--elements", "8000", "--repeats", "1", "--calls", "3")
    assert set(result["ratios"]) == set(result["targets"])
    assert all(ratio > 0 for ratio in result["ratios"].values())


@pytest.mark.ray
@pytest.mark.slow
def test_bench_loop() -> None:
    result = run("benchmarks/bench_loop.py", "--steps", "3")
    assert result["ratio"] > 0
    assert set(result["median_s"]) == {"adamserve", "plain", "plain_alone"}
    floor = min(result["median_s"]["plain"], result["median_s"]["plain_alone"])
    assert result["ratio"] == pytest.approx(result["median_s"]["adamserve"] / floor, rel=0.02)
    assert (result["met"] is None) is not result["steady"]


def test_bench_sparse() -> None:
    result = run("benchmarks/bench_sparse.py", "--rows", "20000", "--repeats", "3", "--gap", "2000")
    assert set(result["ratios"]) == set(result["targets"])
    assert all(ratio > 0 for ratio in result["ratios"].values())


def test_bench_metrics() -> None:
    result = run("benchmarks/bench_metrics.py", "--blocks", "2", "--seconds", "0.05", "--tensors", "20")
    assert set(result["ratios"]) == set(result["targets"]) == set(result["met"])
    more = result["ratios"].pop("longest push beside a scrape, ms more")
    longest = result["compared"]["longest_push_ms"]
    difference = longest["on"]["of nine in ten"] - longest["off"]["of nine in ten"]
    assert more == pytest.approx(difference, abs=1e-4)  # below 0 where nothing disturbs
    assert all(ratio > 0 for ratio in result["ratios"].values())
