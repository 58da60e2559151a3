"""What every experiment is: a name, what it runs at each scale, and claims that its numbers bear out or do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from adamserve.shard.consistency import Consistency
from workers.data import Dataset
from workers.experiments.lab import Lab
from workers.experiments.trial import Data, Trial


class Scale(StrEnum):
    """How much to run: a check that everything works, what two cores do in an hour, or the paper's own size."""

    smoke = "smoke"
    cpu = "cpu"
    full = "full"


Size = TypeVar("Size")


def by_scale(smoke: Size, cpu: Size, full: Size) -> Mapping[Scale, Size]:
    """What an experiment takes at each scale."""
    return {Scale.smoke: smoke, Scale.cpu: cpu, Scale.full: full}


SEEDS = by_scale(1, 3, 5)
"""Seeds that each scale takes where none are asked for."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a person chose: how much to run, with how many seeds, and every training's shards, workers and consistency.

    `data` says whether the data sets' files are at hand; embedded stand-ins take their places otherwise.
    """

    scale: Scale
    data: bool
    seeds: int
    shards: int
    workers: int
    consistency: Consistency

    def as_json(self) -> dict[str, Any]:
        """For the verdict, and to tell whether a folder holds the same."""
        words = {"data": "files" if self.data else "stand-ins", "consistency": str(self.consistency)}
        return {**vars(self), **words}

    def choose(self, files: str, stand_in: str, *, examples: int | None = None, whiten: bool = False) -> Data:
        """A data set with the files at hand, whitened if asked for, and its stand-in, never whitened, without."""
        return Data(name=files if self.data else stand_in, examples=examples, whiten=whiten and self.data)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that the slides or the paper say, with its threshold; what it was decided by, and whether it held."""

    text: str
    source: str
    numbers: Mapping[str, Any]
    held: bool


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What came of an experiment.

    Attributes:
        figures: files drawn, PNG with an SVG of the same name beside it.
        tables: title -> rows, the first one a heading.
        what, differs: the data, network and sizes, in words; and what is not as in the paper.
        used: settings that the experiment has of its own, in place of those that a person chose.
    """

    claims: Sequence[Claim]
    figures: Sequence[str]
    tables: Mapping[str, Sequence[Sequence[str]]]
    what: Sequence[str]
    differs: Sequence[str] = ()
    used: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One of the paper's experiments: what it trains on, and what runs it.

    `run` runs what the folder's logs do not hold yet, and draws the figures into the folder.
    """

    name: str
    title: str
    needs: Callable[[Settings], Data]
    run: Callable[[Lab, Settings, Path], Findings]


OFFICIAL: Mapping[str, int] = {"mnist": 60_000, "imdb": 25_000, "cifar10": 50_000}
"""Training examples of the data sets as they are published."""


def differences(data: Dataset, wanted: str) -> list[str]:
    """How a data set differs from the one that the paper has."""
    if data.name != wanted:
        return [f"{data.name} stands in for {wanted}."]
    if len(data.train_y) != OFFICIAL[wanted]:
        return [f"{len(data.train_y)} of the {OFFICIAL[wanted]} training examples of {wanted}."]
    return []


def relative(a: float, b: float) -> float:
    """How far a lies above b, as a part of b; infinitely above 0."""
    if b == 0.0:
        return 0.0 if a == 0.0 else math.inf
    return a / b - 1.0


def counted(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def described(trial: Trial, data: Dataset, settings: Settings) -> str:
    """What an experiment's trainings are, in words."""
    return (
        f"{trial.network} on {len(data.train_y)} examples of {data.name}"
        f"{', whitened' if trial.data.whiten else ''}, mini-batches of {trial.batch}, {trial.epochs} epochs,"
        f" {counted(settings.seeds, 'seed')}."
    )
