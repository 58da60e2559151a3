"""The run folder: run.json, metrics.csv and the loss curve. Each file is written beside and renamed."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from adamserve.train.loop import EpochReport
from adamserve.train.task import Step
from adamserve.values import Array

COLUMNS = ("at", "rank", "step", "epoch", "loss", "comparator_loss", "outcome", "staleness", "clock")
"""Columns of metrics.csv: one line a push; `at` in seconds since 1970, staleness and clock in updates."""


def write_json(path: Path, record: Any) -> None:
    """Write a JSON document whole or not at all."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with beside(path) as temporary, temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def without_nan(value: Any) -> Any:
    """A JSON value with null in place of every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_metrics(path: Path, steps: Sequence[Step], *, append: bool) -> None:
    """Write one line a push; a resumed run's lines go after those already there."""
    rows: list[list[Any]] = []
    if append and path.exists():
        with path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
    rows += [[getattr(step, name) for name in COLUMNS] for step in steps]
    with beside(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def write_curve(path: Path, steps: Sequence[Step], epochs: Sequence[EpochReport], *, title: str) -> None:
    """Draw training loss against epochs, smoothed beside raw, and the test loss of each evaluation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="cross-entropy", title=title)
    if steps:
        x = [step.epoch for step in steps]
        y = [max(step.loss, 1e-12) for step in steps]
        axes.plot(x, y, color="tab:blue", alpha=0.25, linewidth=0.7, label="training loss, each batch")
        axes.plot(x, _smooth(y), color="tab:blue", linewidth=1.5, label="training loss, mean of 50")
    tested = [epoch for epoch in epochs if "test_loss" in epoch.numbers]
    if tested:
        losses = [epoch.numbers["test_loss"] for epoch in tested]
        axes.plot([epoch.epoch for epoch in tested], losses, "o-", color="tab:orange", label="test loss")
    if steps or tested:
        axes.set_yscale("log")
        axes.legend()
    with beside(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _smooth(values: Sequence[float], width: int = 50) -> Array:
    """Running mean of the last `width` values."""
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Where to write what takes the file's place at the end."""
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    temporary.replace(path)
