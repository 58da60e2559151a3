"""The run folder: run.json, metrics.csv and the loss curve. Each file is written beside and renamed."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamserve.train.loop import EpochReport, StepReport

COLUMNS = ("at", "rank", "step", "epoch", "loss", "comparator_loss", "outcome", "staleness", "clock")
"""Columns of metrics.csv: one line a push; `at` in seconds since 1970, staleness and clock in updates."""


def write_json(path: Path, record: Any) -> None:
    """Write a JSON document whole or not at all."""
    _replace(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """A JSON value with null in place of every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_metrics(path: Path, steps: Sequence[StepReport], *, append: bool) -> None:
    """Write one line a push; a resumed run's lines go after those already there."""
    rows: list[list[Any]] = []
    if append and path.exists():
        with path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
    rows += [[getattr(step, name) for name in COLUMNS] for step in steps]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    temporary.replace(path)


def write_curve(
    path: Path, steps: Sequence[StepReport], epochs: Sequence[EpochReport], *, title: str
) -> None:
    """Draw training loss against epochs, smoothed beside raw, and the test loss of each evaluation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if steps:
        x = [step.epoch for step in steps]
        y = [max(step.loss, 1e-12) for step in steps]
        axes.plot(x, y, color="tab:blue", alpha=0.25, linewidth=0.7, label="training loss, each batch")
        axes.plot(x, _smooth(y), color="tab:blue", linewidth=1.5, label="training loss, mean of 50")
    tested = [epoch for epoch in epochs if "test_loss" in epoch.numbers]
    if tested:
        axes.plot(
            [e.epoch for e in tested],
            [e.numbers["test_loss"] for e in tested],
            "o-",
            color="tab:orange",
            label="test loss",
        )
    if steps or tested:
        axes.set_yscale("log")
        axes.legend()
    axes.set_xlabel("epoch")
    axes.set_ylabel("cross-entropy")
    axes.set_title(title)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def _smooth(values: Sequence[float], width: int = 50) -> list[float]:
    """Running mean of the last `width` values."""
    smoothed = []
    total = 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        smoothed.append(total / min(i + 1, width))
    return smoothed


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
