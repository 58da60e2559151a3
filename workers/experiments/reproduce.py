"""Run experiments into a folder, skip those that it holds already, and keep its report up to date."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import adamserve
from adamserve.errors import Conflict
from workers.experiments import report
from workers.experiments.base import Experiment, Findings, Settings
from workers.experiments.catalogue import EXPERIMENTS
from workers.experiments.lab import Data, Lab
from workers.record import without_nan, write_json

DATA = "data.json"
"""File of an experiment's folder that says what it was trained on."""


def reproduce(
    experiments: Sequence[Experiment],
    settings: Settings,
    *,
    data_dir: Path | None,
    out: Path,
    address: str | None,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Run the experiments, each into its folder below `out`.

    An experiment with a verdict is not run again; one that was cut short goes on with the trials that it lacks.

    Returns:
        The verdicts, as in each folder's verdict.json. REPORT.html in `out` shows them.

    Raises:
        Conflict: `out` holds experiments with other settings, or on other data.
        DataError: a data set's files are missing or damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, settings)
    verdicts: list[dict[str, Any]] = []
    done = {e.name: _verdict(out / e.name) for e in experiments}
    if all(done.values()):
        verdicts = [found for found in done.values() if found]
        _report(out)
        return verdicts

    def told(experiment: Experiment) -> Callable[[str], None]:
        place = f"{experiments.index(experiment) + 1}/{len(experiments)} {experiment.name}"
        return lambda message: progress(f"{place}: {message}")

    lab = Lab(data_dir=data_dir, shards=settings.shards, address=address, progress=progress)
    for experiment in experiments:  # files that are missing, or others, are said now, not after an hour
        if done[experiment.name] is None:
            lab.progress = told(experiment)
            _same_data(out / experiment.name, _data(lab, experiment.needs(settings)))
    with lab:
        for experiment in experiments:
            found = done[experiment.name]
            if found is None:
                lab.progress = told(experiment)
                folder = out / experiment.name
                folder.mkdir(exist_ok=True)
                write_json(folder / DATA, _data(lab, experiment.needs(settings)))
                began = time.perf_counter()
                findings = experiment.run(lab, settings, folder)
                found = _record(experiment, settings, findings, time.perf_counter() - began)
                write_json(folder / "verdict.json", found)
            verdicts.append(found)
            _report(out)
    return verdicts


def _report(out: Path) -> None:
    """Show every experiment that the folder holds, of this call or an earlier one."""
    found = (_verdict(out / name) for name in EXPERIMENTS)
    report.write(out, [verdict for verdict in found if verdict])


def _claim(out: Path, settings: Settings) -> None:
    """Make the folder one for these settings, or find that it is."""
    path = out / "settings.json"
    if path.exists():
        kept = json.loads(path.read_text())
        for name, value in settings.as_json().items():
            if kept.get(name) != value:
                raise Conflict(
                    f"{out} holds a reproduction with {name} {kept.get(name)}, not {value}",
                    field="out",
                    fix="give another folder",
                )
    else:
        write_json(path, settings.as_json())


def _data(lab: Lab, wanted: Data) -> dict[str, Any]:
    """What an experiment is trained on, in a few words."""
    data = lab.data(wanted)
    return {"name": data.name, "examples": len(data.train_y), "sha256": lab.digest(wanted)}


def _same_data(folder: Path, data: Mapping[str, Any]) -> None:
    """Find that what the folder holds was trained on these examples."""
    path = folder / DATA
    kept = json.loads(path.read_text()) if path.exists() else data
    if kept != data:
        raise Conflict(
            f"{folder} holds trainings on {kept['examples']} examples of {kept['name']}, which are not"
            f" the {data['examples']} of {data['name']} here",
            field="out",
            fix="give another folder, or the --data-dir of before",
        )


def _verdict(folder: Path) -> dict[str, Any] | None:
    path = folder / "verdict.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def _record(experiment: Experiment, settings: Settings, findings: Findings, seconds: float) -> dict[str, Any]:
    record: dict[str, Any] = without_nan(
        {
            "experiment": experiment.name,
            "title": experiment.title,
            "settings": settings.as_json(),
            "held": all(claim.held for claim in findings.claims),
            **asdict(findings),
            "seconds": round(seconds, 1),
            "versions": {
                "adamserve": adamserve.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
        }
    )
    return json.loads(json.dumps(record))  # type: ignore[no-any-return] # tuples are lists, as when read again
