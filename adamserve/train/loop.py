"""The training loop of one worker: pull -> gradient -> push.

The loop keeps no state of its own beyond the pusher's seq: step k of a worker is its k-th push, and everything
random in it (its mini-batch, its dropout masks) is a function of (seed, rank, k). So a worker that is started
again, or resumed from a checkpoint, goes on with the step after its last decided push.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from adamserve.errors import InvalidArgument, NotFinite
from adamserve.shard.gradients import borrow
from adamserve.shard.sparse import as_rows
from adamserve.train.batches import indices, step_seed, steps_per_epoch
from adamserve.values import Array, Clocks, Gradient, JobReceipt, Outcome
from workers.data import Dataset
from workers.data.bags import Bags
from workers.networks import BagOfWords, Logistic

EVALUATION_BATCH = 1000
"""Examples evaluated at once."""


class Client(Protocol):
    """What the loop asks of a client: DESIGN's three verbs, and the last seq used."""

    @property
    def seq(self) -> int: ...

    def pull(
        self,
        *,
        into: Mapping[str, Array] | None = None,
        rows: Mapping[str, Array] | None = None,
        training: bool = True,
    ) -> tuple[Mapping[str, Array], Clocks]: ...

    def push(self, gradients: Mapping[str, Gradient], clock: Clocks) -> JobReceipt: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """One worker's part in a job.

    Attributes:
        rank: this worker, from 0.
        workers: all workers of the job.
        batch: examples in a worker's mini-batch.
        epochs: stop after this many passes over the training set by all workers together.
        seed: of the data order and of dropout.
        max_steps: stop after this many pushes of this worker; None sets no such bound.
        target_loss: stop when the training loss of the last 20 batches, on average, is at most this.
        device: where the gradient is computed, as torch names it.
        dtype: of the computation, as torch names it: the parameters'.
        evaluate: after every epoch rank 0 evaluates on the test set.
        by_rows: push and pull only the rows that a mini-batch of `Bags` touches.
    """

    rank: int
    workers: int
    batch: int
    epochs: int
    seed: int
    max_steps: int | None = None
    target_loss: float | None = None
    device: str = "cpu"
    dtype: str = "float32"
    evaluate: bool = True
    by_rows: bool = True

    def __post_init__(self) -> None:
        for name in ("workers", "batch", "epochs"):
            if not getattr(self, name) >= 1:
                raise InvalidArgument(f"must be at least 1, got {getattr(self, name)}", field=name)
        if self.max_steps is not None and not self.max_steps >= 1:
            raise InvalidArgument(f"must be at least 1, got {self.max_steps}", field="max_steps")

    def last_step(self, examples: int) -> int:
        """Steps that this worker makes in all, from the start of the job."""
        steps = self.epochs * steps_per_epoch(examples, self.batch, self.workers)
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step: its loss at the pulled parameters, and what became of its push.

    Attributes:
        comparator_loss: the same mini-batch's loss at the comparator; NaN without one.
    """

    rank: int
    step: int
    epoch: float
    loss: float
    comparator_loss: float
    outcome: Outcome
    staleness: int
    clock: int
    at: float


@dataclass(frozen=True, slots=True)
class EpochReport:
    """An evaluation on the whole test set, at the end of an epoch of the worker that made it."""

    rank: int
    epoch: int
    clock: int
    test_loss: float
    test_accuracy: float
    at: float


Report = StepReport | EpochReport


def run(
    client: Client,
    model: nn.Module,
    data: Dataset,
    config: LoopConfig,
    *,
    report: Callable[[Report], None],
    stopped: Callable[[], bool],
    comparator: Mapping[str, Array] | None = None,
    observe: Callable[[Mapping[str, Array], Mapping[str, Gradient]], None] | None = None,
) -> int:
    """Train until the epochs are done, a stop condition holds, or `stopped()` says so.

    A push that is refused as STALE is counted and its batch passed over; the next step pulls anew.

    Args:
        client: has joined.
        model: its parameters are overwritten by each pull.
        data: worker `rank` takes its share of every epoch's permutation.
        report: called after every step, and by rank 0 after every epoch's evaluation.
        stopped: asked before every step.
        comparator: parameters to compute every mini-batch's loss at as well, as for regret.
        observe: called before every push with the parameters pulled and the gradients; they change afterwards.

    Returns:
        The last step made, counted from the start of the job.

    Raises:
        NotFinite: a loss or a gradient is NaN or infinite: the training has diverged.
    """
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    model.to(device, dtype)
    best = deepcopy(model) if comparator is not None else None
    if best is not None and comparator is not None:
        best.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in comparator.items()})
    mirror = Mirror(model)
    batches = Batches(data, model, config)
    y = borrow(data.train_y).to(device)
    per_epoch = steps_per_epoch(len(y), config.batch, config.workers)
    last = config.last_step(len(y))
    recent: list[float] = []
    while client.seq < last and not stopped():
        step = client.seq
        chosen = indices(
            n=len(y),
            batch=config.batch,
            workers=config.workers,
            rank=config.rank,
            step=step,
            seed=config.seed,
        )
        seed = step_seed(config.seed, config.rank, step)
        x, rows = batches.take(chosen, seed)
        clock = mirror.pull(client, rows)
        labels = y[torch.from_numpy(chosen)]
        loss = gradient(model, x, labels, seed=seed)
        if not math.isfinite(loss):
            raise NotFinite(f"the loss of step {step + 1} is {loss}", field="loss", fix="lower the rate")
        gradients = mirror.gradients()
        if observe is not None:
            observe(mirror.arrays, gradients)
        receipt = client.push(gradients, clock)
        done = (step + 1) / per_epoch
        report(
            StepReport(
                config.rank,
                step + 1,
                done,
                loss,
                math.nan if best is None else loss_of(best, x, labels, seed=seed),
                receipt.outcome,
                receipt.staleness,
                receipt.clock.newest,
                time.time(),
            )
        )
        if config.evaluate and config.rank == 0 and (step + 1) % per_epoch == 0:
            clock = mirror.pull(client, training=False)
            test_loss, accuracy = evaluate(model, data.test_x, data.test_y)
            report(EpochReport(0, round(done), clock.newest, test_loss, accuracy, time.time()))
        recent = [*recent[-19:], loss]
        if config.target_loss is not None and len(recent) == 20 and sum(recent) / 20 <= config.target_loss:
            break
    return client.seq


class Batches:
    """A worker's mini-batches as its model takes them, and the rows of the parameters that each one needs."""

    def __init__(self, data: Dataset, model: nn.Module, config: LoopConfig) -> None:
        self._bags = data.train_x if isinstance(data.train_x, Bags) else None
        dtype = getattr(torch, config.dtype)
        self._x = None if isinstance(data.train_x, Bags) else borrow(data.train_x).to(config.device, dtype)
        self._model = model
        self._by_rows = config.by_rows
        if isinstance(model, BagOfWords):
            model.sparse_gradient = config.by_rows

    def take(self, chosen: Array, seed: int) -> tuple[torch.Tensor | Bags, dict[str, Array] | None]:
        """The examples chosen; and by tensor the rows needed, None for all."""
        if self._bags is None or not isinstance(self._model, BagOfWords):
            assert self._x is not None
            return self._x[torch.from_numpy(chosen)], None
        bags = self._model.thinned(self._bags[chosen], seed)
        return bags, {"weight": np.unique(bags.words)} if self._by_rows else None


def gradient(model: nn.Module, x: torch.Tensor | Bags, y: torch.Tensor, *, seed: int) -> float:
    """Leave the gradient of a mini-batch's loss in the parameters' `.grad`; returns the loss.

    Args:
        x, y: [batch, features] inputs (or bags) and [batch] class indices.
        seed: of the dropout masks and other draws.
    """
    model.zero_grad(set_to_none=True)
    loss = _loss(model, x, y, seed)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


@torch.no_grad()
def loss_of(model: nn.Module, x: torch.Tensor | Bags, y: torch.Tensor, *, seed: int) -> float:
    """What `gradient` returns, without the gradient."""
    return float(_loss(model, x, y, seed))


def _loss(model: nn.Module, x: torch.Tensor | Bags, y: torch.Tensor, seed: int) -> torch.Tensor:
    """A training step's loss: mean cross-entropy of logits, or the mean of what the network itself calls a loss."""
    model.train()
    torch.manual_seed(seed)
    outputs = model(x)
    loss = outputs.mean() if outputs.ndim == 1 else functional.cross_entropy(outputs, y)
    return loss + model.penalty() if isinstance(model, Logistic) and model.l2 else loss


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Array | Bags, labels: Array) -> tuple[float, float]:
    """Mean loss and accuracy over a data set, without dropout and penalty.

    A network that classifies nothing has its own loss, drawn with a fixed seed, and NaN for the accuracy.
    """
    model.eval()
    like = next(model.parameters())
    total, right = 0.0, 0.0
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for start in range(0, len(labels), EVALUATION_BATCH):
            some = inputs[start : start + EVALUATION_BATCH]
            x = some if isinstance(some, Bags) else borrow(some).to(like)
            y = borrow(labels[start : start + EVALUATION_BATCH]).to(like.device)
            outputs = model(x)
            if outputs.ndim == 1:
                total, right = total + float(outputs.sum()), math.nan
            else:
                total += float(functional.cross_entropy(outputs, y, reduction="sum"))
                right += int((outputs.argmax(dim=1) == y).sum())
    return total / len(labels), right / len(labels)


class Mirror:
    """A model's parameters as numpy arrays: on the CPU its own memory, elsewhere a copy on the host."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._host = {name: p.detach().cpu() for name, p in self._parameters.items()}
        self.arrays: dict[str, Array] = {name: host.numpy() for name, host in self._host.items()}

    def pull(
        self, client: Client, rows: Mapping[str, Array] | None = None, *, training: bool = True
    ) -> Clocks:
        """Bring the job's parameters, or some of their rows, into the model."""
        found, clock = client.pull(into=self.arrays, rows=rows, training=training)
        for name, numbers in (rows or {}).items():
            self.arrays[name][numbers] = found[name]
        self._load()
        return clock

    @torch.no_grad()
    def _load(self) -> None:
        for name, parameter in self._parameters.items():
            if parameter.device.type != "cpu":
                parameter.copy_(self._host[name])

    def gradients(self) -> dict[str, Gradient]:
        """The gradients by name, sparse ones as rows; a parameter without one is left out."""
        grads = {name: p.grad.detach().cpu() for name, p in self._parameters.items() if p.grad is not None}
        return {name: as_rows(name, grad) or grad.numpy() for name, grad in grads.items()}
