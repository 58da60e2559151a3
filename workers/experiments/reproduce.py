"""Run experiments into a folder, skip those that it holds already, and keep its report up to date."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

import adamserve
from adamserve.cluster.running import StartService
from adamserve.cluster.service import Service
from adamserve.errors import Conflict, InvalidArgument
from adamserve.shard.consistency import Consistency
from adamserve.train.record import without_nan, write_json
from workers.experiments import report
from workers.experiments.adamax import ADAMAX
from workers.experiments.base import SEEDS, Experiment, Findings, Scale, Settings
from workers.experiments.comparison import CNN_CIFAR10, LOGREG_IMDB, LOGREG_MNIST, MLP_MNIST
from workers.experiments.convex import REGRET
from workers.experiments.lab import Lab
from workers.experiments.vae import VAE_BIAS

COMPARISONS = (LOGREG_MNIST, LOGREG_IMDB, MLP_MNIST, CNN_CIFAR10)

EXPERIMENTS: Mapping[str, Experiment] = {
    **{c.name: Experiment(name=c.name, title=c.title, needs=c.needs, run=c.run) for c in COMPARISONS},
    **{experiment.name: experiment for experiment in (VAE_BIAS, ADAMAX, REGRET)},
}
"""Every experiment by name, in the order in which they are run."""

SETTINGS, DATA = "settings.json", "data.json"
"""Files of a reproduction's folder that say what was chosen, and by name which data sets were used."""


def reproduce(
    names: Sequence[str],
    *,
    scale: str,
    seeds: int | None,
    shards: int,
    workers: int,
    consistency: Consistency,
    data_dir: Path | None,
    out: Path,
    address: str | None,
    progress: Callable[[str], None],
    start: StartService = Service.start,
) -> list[dict[str, Any]]:
    """Run experiments, each into its folder below `out`.

    An experiment with a verdict is not run again; one that was cut short goes on with the trials that it lacks.

    Args:
        names: of `EXPERIMENTS`.
        scale, seeds, shards, workers, consistency: as `Settings` has them; None stands for the scale's seeds.
        data_dir, progress: as for a `Lab`, whose service starts with `start`, at `address`.

    Returns:
        The verdicts, as in each folder's verdict.json. REPORT.html in `out` shows them.

    Raises:
        Conflict: `out` holds experiments with other settings, or on other data.
        DataError: a data set's files are missing or damaged.
    """
    settings = Settings(
        scale=Scale(scale),
        data=data_dir is not None,
        seeds=SEEDS[Scale(scale)] if seeds is None else seeds,
        shards=shards,
        workers=workers,
        consistency=consistency,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"{out} cannot be made: {error.strerror}", field="out") from None
    chosen = _agreed(out / SETTINGS, settings.as_json(), "a reproduction")
    done = {name: _read(out / name / "verdict.json") for name in names}
    lab = Lab(data_dir, progress, partial(start, shards=shards, address=address))

    def turn_to(name: str) -> Experiment:
        place = f"{names.index(name) + 1}/{len(names)} {name}"
        lab.progress = lambda message: progress(f"{place}: {message}")
        return EXPERIMENTS[name]

    used: dict[str, Any] = {}
    for name in names:  # files that are missing, or others, are said now, not after an hour
        needed = turn_to(name).needs(settings)
        used |= _agreed(out / DATA, {needed.name: lab.whole(needed)}, "trainings on other data,")
    for path, content in ((out / SETTINGS, chosen), (out / DATA, used)):
        if content != _read(path):
            write_json(path, content)
    with nullcontext() if all(done.values()) else lab:
        for name in names:
            if not done[name]:
                experiment, folder = turn_to(name), out / name
                folder.mkdir(exist_ok=True)
                began = time.perf_counter()
                findings = experiment.run(lab, settings, folder)
                verdict = _verdict(experiment, settings, findings, time.perf_counter() - began)
                write_json(folder / "verdict.json", without_nan(verdict))
                done[name] = _read(folder / "verdict.json")
            found = (_read(out / each / "verdict.json") for each in EXPERIMENTS)  # an earlier call's too
            report.write(out, [verdict for verdict in found if verdict])
    return list(done.values())


def _read(path: Path) -> dict[str, Any]:
    """A file's JSON; empty where there is no file."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _agreed(path: Path, wanted: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What a folder's file says of what it holds, with what is wanted; a Conflict where it says something else."""
    kept = _read(path)
    for name, value in wanted.items():
        if kept.get(name, value) != value:
            problem = f"{path.parent} holds {what} with {name} {_words(kept[name])}, not {_words(value)}"
            raise Conflict(problem, field="out", fix="give another folder")
    return {**kept, **wanted}


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {str(v)[:12]}" for k, v in value.items())
    return str(value)


def _verdict(
    experiment: Experiment, settings: Settings, findings: Findings, seconds: float
) -> dict[str, Any]:
    fields = asdict(findings)
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "settings": {**settings.as_json(), **fields.pop("used")},
        "held": all(claim.held for claim in findings.claims),
        **fields,
        "seconds": round(seconds, 1),
        "versions": {
            "adamserve": adamserve.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
