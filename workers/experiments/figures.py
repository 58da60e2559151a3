"""The figures of the experiments, each as PNG and SVG, and the numbers behind them as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = [
    f"tab:{colour}" for colour in ("purple", "green", "blue", "red", "orange", "brown", "gray", "pink")
]


def grid(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its [rows, columns] axes; drawn without a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, folder: Path, name: str) -> str:
    """Write NAME.png and NAME.svg; returns the former's name."""
    import matplotlib

    # Without a date and with a fixed salt equal figures are equal files.
    with matplotlib.rc_context({"svg.hashsalt": "adamserve"}):
        figure.savefig(folder / f"{name}.png", dpi=110)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return f"{name}.png"


def curves(folder: Path, name: str, series: Mapping[str, Sequence[Sequence[float]]], *, title: str) -> str:
    """Training cost against epochs, the paper's form: a line a rule (mean of its seeds), a band from least to most.

    `series` has by label, for each seed, the cost of each epoch.
    """
    figure, [[axes]] = grid(1, 1, width=7.0, height=4.5)
    for (label, runs), colour in zip(series.items(), COLOURS, strict=False):
        columns = list(zip(*runs, strict=True))
        epochs = [e for e, column in enumerate(columns, 1) if all(map(math.isfinite, column))]
        values = [columns[e - 1] for e in epochs]
        axes.plot(epochs, [sum(v) / len(v) for v in values], color=colour, label=label)
        if len(runs) > 1:
            axes.fill_between(
                epochs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2
            )
    axes.set(xlabel="passes over the training set", ylabel="training cost", title=title, yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    return save(figure, folder, name)


def table(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, the heading first."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def shown(value: Any) -> str:
    """A number for people: four digits, or in words where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "diverged"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
