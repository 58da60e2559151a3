"""A trial, its result, and the log that remembers which trials are done."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from adamserve import optim
from adamserve.shard import consistency
from adamserve.shard.consistency import Async, Consistency


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set as `workers.data` knows it, whitened or not: its first `examples` training examples, None for all."""

    name: str
    examples: int | None = None
    whiten: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training. Trials with one seed start from the same weights and see the same examples in the same order.

    Attributes:
        network, data, l2, dtype: what is trained, and on what.
        workers, consistency: how many push, and when a push may be applied.
        regret: count the regret in hindsight.
    """

    network: str
    data: Data
    rule: optim.Rule
    batch: int
    epochs: int
    seed: int = 0
    l2: float = 0.0
    dtype: str = "float32"
    workers: int = 1
    consistency: Consistency = field(default_factory=Async)
    regret: bool = False

    def key(self) -> str:
        """What names the trial in the log: all of it, as JSON."""
        words = {"rule": optim.to_dict(self.rule), "consistency": consistency.to_dict(self.consistency)}
        return json.dumps({**asdict(self), **words}, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a trial.

    Attributes:
        costs: by epoch, the mean training cost of its mini-batches, each at the parameters pulled for it; infinite from
            the epoch on in which the training diverged.
        staleness: mean, in updates.
        average_regret: R(T)/T in hindsight, where it was counted.
    """

    costs: tuple[float, ...]
    staleness: float
    seconds: float
    average_regret: float | None = None

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """The result that a log has these fields of."""
        costs = tuple(math.inf if cost is None else cost for cost in fields["costs"])
        return cls(**{**fields, "costs": costs})

    @property
    def final(self) -> float:
        """The last epoch's cost."""
        return self.costs[-1]


def mean(results: Sequence[Result], name: str) -> float:
    """The mean of an attribute; infinite where it was not counted, as of a training that diverged."""
    values = [getattr(result, name) for result in results]
    return math.inf if None in values else sum(values) / len(values)


def read_log(path: Path) -> dict[str, Any]:
    """The results of a log by their keys, each as JSON; a line that was cut short is passed over."""
    results = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            key, result = json.loads(line).values()
            results[json.dumps(key, sort_keys=True)] = result
    return results


def append(path: Path, key: str, result: Any) -> None:
    """Add a result to a log, and make sure that it is on disk; a line that was cut short before it stays apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps({"trial": json.loads(key), "result": result}) + "\n")
        file.flush()
        os.fsync(file.fileno())
