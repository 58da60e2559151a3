"""A trial, its result, and the log that remembers which trials are done."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from adamserve import optim
from adamserve.shard import consistency
from adamserve.shard.consistency import Async, Consistency

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set, or the first part of it.

    Attributes:
        name: as `workers.data` knows it.
        examples: of the training set, the first so many; None for all.
        whiten: as for `workers.data.load`.
    """

    name: str
    examples: int | None = None
    whiten: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training. Trials with one seed start from the same weights and see the same examples in the same order.

    Attributes:
        network, data, l2, dtype: what is trained, and on what.
        rule: the update rule.
        batch, epochs, seed: as for a training run.
        workers, consistency: how many push, and when a push may be applied.
        regret: count the regret in hindsight.
    """

    network: str
    data: Data
    rule: optim.Rule
    batch: int
    epochs: int
    seed: int
    l2: float = 0.0
    dtype: str = "float32"
    workers: int = 1
    consistency: Consistency = field(default_factory=Async)
    regret: bool = False

    def key(self) -> str:
        """What names the trial in the log: all of it, as JSON."""
        settings = {
            **asdict(self),
            "rule": optim.to_dict(self.rule),
            "consistency": consistency.to_dict(self.consistency),
        }
        return json.dumps(settings, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a trial.

    Attributes:
        costs: by epoch, the mean training cost of its mini-batches, each at the parameters pulled for it. Infinite from
            the epoch on in which the training diverged.
        staleness: mean, in updates.
        seconds: from the first step to the last.
        average_regret: R(T)/T in hindsight, where it was counted.
    """

    costs: tuple[float, ...]
    staleness: float
    seconds: float
    average_regret: float | None = None

    @property
    def final(self) -> float:
        """The last epoch's cost."""
        return self.costs[-1]

    @property
    def diverged(self) -> bool:
        """Whether a loss or a gradient was no longer finite."""
        return math.isinf(self.final)


def read_log(path: Path) -> dict[str, Result]:
    """The results of a log by their trials' keys; a line that was cut short is passed over."""
    results = {}
    for entry in _entries(path):
        found = entry["result"]
        costs = tuple(math.inf if cost is None else cost for cost in found["costs"])
        results[json.dumps(entry["trial"], sort_keys=True)] = Result(**{**found, "costs": costs})
    return results


def kept(
    path: Path, key: Mapping[str, Any], make: Callable[[], Made], read: Callable[[Mapping[str, Any]], Made]
) -> Made:
    """What a log holds for the key, or what is made now and added to it.

    Args:
        path: a file of one JSON object a line.
        key: all that the result depends on.
        make: makes it, a dataclass.
        read: makes it of its fields again.
    """
    wanted = json.loads(json.dumps(key))
    for entry in _entries(path):
        if entry["key"] == wanted:
            return read(entry["result"])
    made = make()
    append(path, {"key": wanted, "result": asdict(made)})  # type: ignore[call-overload] # it is a dataclass
    return made


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log; one that was cut short is passed over."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """Add a line to a log, and make sure that it is on disk; a line that was cut short before it stays apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
