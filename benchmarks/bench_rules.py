"""What does a step of each rule cost, beside torch's fused Adam and the memory's speed?

Both sides run in turn in one process on the same arrays; figures are medians. A rule's `bytes` are those that a
perfect single pass moves: it reads the gradient, and reads and writes w and each slot. `ratio` is its time over the
time that torch._fused_adam_'s bandwidth (28 bytes an element) would need for these bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# OpenMP's threads would spin for some milliseconds after torch's turn, and take a core from the next one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from adamserve import optim

RULES: dict[str, optim.Rule] = {
    "Adam": optim.Adam(),
    "AdaMax": optim.AdaMax(),
    "SGD": optim.SGD(momentum=0.9),
    "Nesterov": optim.Nesterov(),
    "AdaGrad": optim.AdaGrad(),
    "RMSProp": optim.RMSProp(),
    "NesterovRMSProp": optim.NesterovRMSProp(),
    "LpAdam(p=2)": optim.LpAdam(p=2),
    "LpAdam(p=3)": optim.LpAdam(p=3),
}
FUSED_BYTES = 28
LIMIT = {"Adam": 1.10, "AdaMax": 1.10}
OTHER_LIMIT = 1.25
ADAMAX_SPEEDUP = 3.0


def cpu_name() -> str:
    """The processor, as the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def bytes_of(rule: optim.Rule) -> int:
    """Bytes an element that one float32 pass moves."""
    return 4 + 8 + 8 * len(rule.slot_names)


def contenders(n: int, device: str) -> dict[str, Callable[[], object]]:
    """One step of everything that is compared, on shared arrays."""
    w, g = torch.rand(n, device=device), torch.rand(n, device=device) - 0.5
    slots = {name: torch.rand(n, device=device) for name in ("m", "v", "u", "velocity", "root")}
    step = torch.tensor(10.0, device=device)

    def fused() -> None:
        torch._fused_adam_(
            [w], [g], [slots["m"]], [slots["v"]], [], [step],
            lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip

    parameter = torch.nn.Parameter(torch.rand(n, device=device))
    parameter.grad = g
    adamax = torch.optim.Adamax([parameter])
    run: dict[str, Callable[[], object]] = {"torch fused Adam": fused, "torch.optim.Adamax": adamax.step}
    copy = torch.empty_like(w)
    run["copy"] = lambda: copy.copy_(w)
    for name, rule in RULES.items():
        own = {slot: slots[slot] for slot in rule.slot_names}
        run[name] = lambda rule=rule, own=own: rule.step_(w, g, own, 10)  # type: ignore[misc]
    return run


def measure(n: int, repeats: int, device: str) -> dict[str, Any]:
    """Medians over `repeats` rounds in which everything runs once; torch's fused Adam before each of ours."""
    run = contenders(n, device)
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in run}
    pairs: dict[str, list[float]] = {name: [] for name in RULES}

    def timed(name: str) -> float:
        wait()
        began = time.perf_counter()
        run[name]()
        wait()
        return time.perf_counter() - began

    for turn in range(repeats + 1):
        for name in ("copy", "torch.optim.Adamax"):
            taken = timed(name)
            if turn:
                seconds[name].append(taken)
        for name in RULES:
            fused, ours = timed("torch fused Adam"), timed(name)
            if turn:
                seconds["torch fused Adam"].append(fused)
                seconds[name].append(ours)
                pairs[name].append(ours / fused)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = {}
    for name, rule in RULES.items():
        ratio = statistics.median(pairs[name]) * FUSED_BYTES / bytes_of(rule)
        if name == "AdaMax":
            ratio = statistics.median(pairs[name])
        limit = LIMIT.get(name, OTHER_LIMIT)
        rows[name] = {
            "ms": round(median[name] * 1e3, 3),
            "bytes": bytes_of(rule),
            "gb_per_s": round(n * bytes_of(rule) / median[name] / 1e9, 1),
            "ratio": round(ratio, 3),
            "limit": limit,
            "met": ratio <= limit,
        }
    speedup = median["torch.optim.Adamax"] / median["AdaMax"]
    return {
        "elements": n,
        "baselines_ms": {name: round(median[name] * 1e3, 3) for name in run if name not in RULES},
        "rules": rows,
        "adamax_speedup": {
            "over torch.optim.Adamax": round(speedup, 2),
            "limit": ADAMAX_SPEEDUP,
            "met": speedup >= ADAMAX_SPEEDUP,
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="25e6,100e6", help="elements, separated by commas")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    result = {
        "question": "a rule's step beside torch's fused Adam and the memory's speed",
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "device": arguments.device},
        "torch": torch.__version__,
        "repeats": arguments.repeats,
        "executor": {
            name: optim.prepare(rule, torch.float32, device=arguments.device).executor
            for name, rule in RULES.items()
        },
        "sizes": [
            measure(int(float(n)), arguments.repeats, arguments.device) for n in arguments.sizes.split(",")
        ],
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for size in result["sizes"]:
        print(f"{size['elements']:,} float32 on {result['machine']['cpu']}")
        for name, ms in size["baselines_ms"].items():
            print(f"  {name:20} {ms:9.2f} ms")
        for name, row in size["rules"].items():
            met = "met" if row["met"] else "MISSED"
            print(
                f"  {name:20} {row['ms']:9.2f} ms  {row['gb_per_s']:6.1f} GB/s"
                f"  x{row['ratio']:.2f} of {row['limit']} {met}"
            )
        speedup = size["adamax_speedup"]
        print(
            f"  AdaMax is {speedup['over torch.optim.Adamax']} times as fast as torch.optim.Adamax (3 wanted)"
        )


if __name__ == "__main__":
    main()
