"""Eight workers in bsp on one node: time a round, the shards' memory, and bytes sent.

    python benchmarks/bench_bsp.py [--workers 8] [--rounds 100] [--json]

It runs `adamserve train` as a user does, and reads the shards' peak memory from the kernel while they live. A round's
time is that between the first step and the last, over the rounds between them.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def peaks() -> dict[int, float]:
    """Peak resident memory in MB of every shard process on this machine, by pid."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and (process / "cmdline").read_bytes().startswith(b"ray::ShardActor"):
                status = dict(
                    line.split(":", 1)
                    for line in (process / "status").read_text().splitlines()
                    if ":" in line
                )
                found[int(process.name)] = int(status["VmHWM"].split()[0]) / 1024
        except (OSError, KeyError):
            continue
    return found


def measure(workers: int, rounds: int, network: str) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(
                sys.executable,
                "-m",
                "adamserve",
                "train",
                network,
                "--workers",
                str(workers),
                "--epochs",
                "10000",
            ),
            *(
                "--consistency",
                "bsp",
                "--max-steps",
                str(rounds),
                "--run-dir",
                f"{folder}/run",
                "--format",
                "json",
            ),
        ]
        strangers = set(peaks())
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            peak: dict[int, float] = {}
            while process.poll() is None:
                peak |= {pid: memory for pid, memory in peaks().items() if pid not in strangers}
                try:
                    process.wait(0.5)
                except subprocess.TimeoutExpired:
                    continue
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        record = json.loads(Path(folder, "run", "run.json").read_text())
        with Path(folder, "run", "metrics.csv").open() as file:
            at = sorted(float(step["at"]) for step in csv.DictReader(file))
    return {
        "ms_a_round": 1e3 * (at[-1] - at[0]) / (rounds - 1),
        "shard_peak_mb": max(peak.values()),
        "bytes_a_round": sum(record["bytes"].values()) / rounds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--network", default="mlp")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    result = measure(arguments.workers, arguments.rounds, arguments.network)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:16} {value:14.2f}")


if __name__ == "__main__":
    main()
