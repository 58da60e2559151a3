"""The paper's networks and data sets as tasks: what the entry points of `adamserve.tasks` name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from adamserve.errors import InvalidArgument
from adamserve.shard.gradients import borrow
from adamserve.train.task import Part, Step, Task, seeded
from adamserve.values import ITEM_BYTES, Array
from workers import data as datasets
from workers import networks
from workers.data import Dataset
from workers.data.bags import Bags
from workers.hindsight import Hindsight, has_minimum

EVALUATION_BATCH = 1000
"""Examples evaluated at once."""

SPARSE = ("exact", "lazy", "dense")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some examples, [batch, features] or bags, and their labels [batch]."""

    x: torch.Tensor | Bags
    y: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class NetworkTask(Task[Batch]):
    """A network of `workers.networks` on a data set.

    Attributes:
        l2: for dense logistic regression, weight of the penalty in its loss.
        counts_regret: for dense logistic regression with `l2`, count the regret: while it runs against the best
            parameters for the training set, and at the end against the best for just the batches seen.
        dtype: of parameters and computation, "float32" or "float64".
        sparse: for data that are bags of words, "exact" or "lazy" as in `JobConfig`, or "dense": push and pull whole
            tensors.

    Raises:
        InvalidArgument: the network does not fit the data, or the options do not fit them.
    """

    network: str
    data: Dataset
    l2: float = 0.0
    counts_regret: bool = False
    dtype: str = "float32"
    sparse: str = "exact"

    def __post_init__(self) -> None:
        network = self._network
        if self.data.sparse and network.make_sparse is None:
            able = " or ".join(name for name, other in networks.NETWORKS.items() if other.make_sparse)
            problem = f"{self.network} takes no bags of words"
            raise InvalidArgument(problem, field="network", fix=f"choose {able}")
        if self.data.sparse or not network.convex:
            if self.l2:
                problem = f"{self.name} has no penalty in its loss"
                raise InvalidArgument(problem, field="l2", fix="use -o l2=... (the rule's)")
            if self.counts_regret:
                problem = f"{self.name} has no convex loss"
                raise InvalidArgument(problem, field="regret", fix="use logreg on dense data")
        if self.counts_regret:
            has_minimum(self.data, self.l2)

    @property
    def name(self) -> str:
        return f"{self.network} on {self.data.name}"

    @property
    def examples(self) -> int:
        return len(self.data.train_y)

    @property
    def tables(self) -> Sequence[str]:
        """The words' weights, as words are numbered by frequency."""
        return ("weight",) if self.data.sparse else ()

    @property
    def lazy(self) -> bool:
        return self.sparse == "lazy"

    @property
    def by_rows(self) -> bool:
        """Whether only the rows of a batch's words are pulled and pushed."""
        return self.data.sparse and self.sparse != "dense"

    def model(self) -> nn.Module:
        features, classes = self.data.features, self.data.classes
        if self.data.sparse:
            assert self._network.make_sparse is not None
            model = self._network.make_sparse(features, classes, self.by_rows)
        else:
            model = self._network.make(features, classes)
        return model.to(getattr(torch, self.dtype))

    def batches(self, part: Part) -> Callable[[int], Batch]:
        """As `Task.batches`; of bags, a step's random part."""
        x, y = self.data.train_x, borrow(self.data.train_y).to(part.device)
        dense = None if isinstance(x, Bags) else borrow(x).to(part.device, getattr(torch, self.dtype))

        def batch(step: int) -> Batch:
            chosen = part.examples(self.examples, step)
            places = torch.from_numpy(chosen)
            if dense is not None:
                return Batch(dense[places], y[places])
            assert isinstance(x, Bags)
            random = np.random.default_rng(part.random(step))
            return Batch(x[chosen].thinned(networks.KEEP, random), y[places])

        return batch

    def rows(self, batch: Batch) -> Mapping[str, Array] | None:
        if not self.by_rows:
            return None
        assert isinstance(batch.x, Bags)
        return {"weight": np.unique(batch.x.words)}

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy of logits, or what the network itself calls a loss; with the penalty l2/2 |W|^2."""
        loss = self._network.loss(model(batch.x), batch.y)
        if not self.l2:
            return loss
        squares = [parameter.square().sum() for parameter in model.parameters()]
        return loss + 0.5 * self.l2 * torch.stack(squares).sum()

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Mean loss and accuracy on the test set, without dropout and penalty.

        A network that classifies nothing has its own loss, drawn with a fixed seed, and NaN for the accuracy.
        """
        return self._measure(model, "test", self.data.test_x, self.data.test_y)

    def summary(self, model: nn.Module) -> Mapping[str, float]:
        """The same on the training set too."""
        train = self._measure(model, "train", self.data.train_x, self.data.train_y)
        return {**train, **self.evaluate(model)}

    def comparator(self) -> Mapping[str, Array] | None:
        """The best parameters for the training set."""
        if not self.counts_regret:
            return None
        hindsight = Hindsight(self.data, self.l2)
        return hindsight.as_parameters(hindsight.minimum().w)

    def regret(self, steps: Sequence[Step], part: Part) -> Mapping[str, Any] | None:
        """The regret against the best parameters for just the batches seen."""
        if not self.counts_regret:
            return None
        return Hindsight(self.data, self.l2).regret(steps, part) if steps else {"steps": 0}

    @property
    def _network(self) -> networks.Network:
        return networks.lookup(self.network)

    def _measure(self, model: nn.Module, part: str, inputs: Array | Bags, labels: Array) -> dict[str, float]:
        like = next(model.parameters())
        total, right = 0.0, 0.0
        with seeded(0):
            for start in range(0, len(labels), EVALUATION_BATCH):
                some = inputs[start : start + EVALUATION_BATCH]
                x = some if isinstance(some, Bags) else borrow(some).to(like)
                y = borrow(labels[start : start + EVALUATION_BATCH]).to(like.device)
                losses, hits = self._network.measure(model(x), y)
                total, right = total + losses, right + hits
        return {f"{part}_loss": total / len(labels), f"{part}_accuracy": right / len(labels)}


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe:
    """The options of a `NetworkTask`, checked as far as they can be without the data.

    Attributes:
        network, l2, dtype, sparse: as `NetworkTask`'s; `regret` is its `counts_regret`.
        dataset, data_dir, whiten: as for `datasets.load`.
    """

    network: str
    dataset: str = "digits"
    data_dir: Path | None = None
    whiten: bool = False
    l2: float = 0.0
    dtype: str = "float32"
    sparse: str = "exact"
    regret: bool = False

    def __post_init__(self) -> None:
        networks.lookup(self.network)
        datasets.lookup(self.dataset)
        if not 0 <= self.l2 < math.inf:
            raise InvalidArgument(f"must be at least 0, got {self.l2}", field="l2")
        if self.dtype not in ITEM_BYTES:
            raise InvalidArgument(f"must be {' or '.join(ITEM_BYTES)}, got {self.dtype!r}", field="dtype")
        if self.sparse not in SPARSE:
            raise InvalidArgument(f"must be {', '.join(SPARSE)}, got {self.sparse!r}", field="sparse")

    @property
    def label(self) -> str:
        return f"{self.network}-{self.dataset}"

    @property
    def counts_regret(self) -> bool:
        return self.regret

    def settings(self) -> Mapping[str, Any]:
        """All but the folder."""
        return {name: value for name, value in vars(self).items() if name != "data_dir"}

    def resumed(self, settings: Mapping[str, Any]) -> Self:
        """The recipe of those settings; what older ones lack has its default."""
        return replace(self, **{name: settings[name] for name in self.settings() if name in settings})

    def load(self, progress: Callable[[str], None]) -> NetworkTask:
        """Load the data set, and whiten it; raises as `datasets.load` and `NetworkTask`."""
        return NetworkTask(
            network=self.network,
            data=datasets.load(self.dataset, self.data_dir, whiten=self.whiten, progress=progress),
            l2=self.l2,
            counts_regret=self.regret,
            dtype=self.dtype,
            sparse=self.sparse,
        )


mlp = partial(NetworkRecipe, network="mlp")
cnn = partial(NetworkRecipe, network="cnn")
logreg = partial(NetworkRecipe, network="logreg")
vae = partial(NetworkRecipe, network="vae")
