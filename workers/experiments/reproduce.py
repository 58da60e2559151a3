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
from adamserve.cluster.running import StartService
from adamserve.cluster.service import Service
from adamserve.errors import Conflict, InvalidArgument
from adamserve.train.record import without_nan, write_json
from workers.experiments import report
from workers.experiments.base import Experiment, Findings, Settings
from workers.experiments.catalogue import EXPERIMENTS
from workers.experiments.lab import Lab

SETTINGS, DATA = "settings.json", "data.json"
"""Files of a reproduction's folder that say what was chosen, and by name which data sets were used."""


def reproduce(
    experiments: Sequence[Experiment],
    settings: Settings,
    *,
    data_dir: Path | None,
    out: Path,
    address: str | None,
    progress: Callable[[str], None],
    start: StartService = Service.start,
) -> list[dict[str, Any]]:
    """Run the experiments, each into its folder below `out`.

    An experiment with a verdict is not run again; one that was cut short goes on with the trials that it lacks.

    Returns:
        The verdicts, as in each folder's verdict.json. REPORT.html in `out` shows them.

    Raises:
        Conflict: `out` holds experiments with other settings, or on other data.
        DataError: a data set's files are missing or damaged.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"{out} cannot be made: {error.strerror}", field="out") from None
    _same(out / SETTINGS, settings.as_json(), "a reproduction")
    verdicts: list[dict[str, Any]] = []
    done = {e.name: _verdict(out / e.name) for e in experiments}

    def told(experiment: Experiment) -> Callable[[str], None]:
        place = f"{experiments.index(experiment) + 1}/{len(experiments)} {experiment.name}"
        return lambda message: progress(f"{place}: {message}")

    lab = Lab(data_dir=data_dir, shards=settings.shards, address=address, progress=progress, start=start)
    used: dict[str, Any] = {}
    for experiment in experiments:  # files that are missing, or others, are said now, not after an hour
        lab.progress = told(experiment)
        needed = experiment.needs(settings)
        used[needed.name] = lab.whole(needed)
        _same(out / DATA, {needed.name: used[needed.name]}, "trainings on other data,")
    for path, content in ((out / SETTINGS, settings.as_json()), (out / DATA, used)):
        if (kept := _read(path)) != (whole := {**kept, **content}):
            write_json(path, whole)
    if all(done.values()):
        _report(out)
        return [found for found in done.values() if found]
    with lab:
        for experiment in experiments:
            found = done[experiment.name]
            if found is None:
                lab.progress = told(experiment)
                folder = out / experiment.name
                folder.mkdir(exist_ok=True)
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


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _same(path: Path, wanted: Mapping[str, Any], what: str) -> None:
    """Find that what a folder's file says of what it holds is what is wanted, where it says anything."""
    kept = _read(path)
    for name, value in wanted.items():
        if kept.get(name, value) != value:
            raise Conflict(
                f"{path.parent} holds {what} with {name} {_words(kept[name])}, not {_words(value)}",
                field="out",
                fix="give another folder",
            )


def _words(value: Any) -> str:
    return (
        ", ".join(f"{k} {str(v)[:12]}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    )


def _verdict(folder: Path) -> dict[str, Any] | None:
    return _read(folder / "verdict.json") or None


def _record(experiment: Experiment, settings: Settings, findings: Findings, seconds: float) -> dict[str, Any]:
    record: dict[str, Any] = without_nan(
        {
            "experiment": experiment.name,
            "title": experiment.title,
            "settings": {**settings.as_json(), **findings.used},
            "held": all(claim.held for claim in findings.claims),
            **{name: part for name, part in asdict(findings).items() if name != "used"},
            "seconds": round(seconds, 1),
            "versions": {
                "adamserve": adamserve.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
        }
    )
    return json.loads(json.dumps(record))  # type: ignore[no-any-return] # tuples are lists, as when read again
