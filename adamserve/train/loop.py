"""A worker's loop: pull -> gradient -> push; from the second step on, a push and the next pull are one exchange.

The loop keeps no state of its own beyond the pusher's seq: step k of a worker is its k-th push, and everything
random in it (its mini-batch, its dropout masks) is a function of (seed, rank, k). So a worker that is started
again, or resumed from a checkpoint, goes on with the step after its last decided push.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from adamserve.client.client import Client
from adamserve.errors import NotFinite, RolledBack
from adamserve.shard.sparse import as_rows
from adamserve.train.task import B, Part, Step, Task, put
from adamserve.values import Array, Clocks, Gradient, JobReceipt, Outcome, Receipt, Stamp


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What the task measured at the end of an epoch of the worker that measured it."""

    rank: int
    epoch: int
    clock: int
    numbers: Mapping[str, float]
    at: float


Report = Step | EpochReport


def run(
    mirror: Mirror,
    task: Task[B],
    part: Part,
    *,
    report: Callable[[Report], None],
    stopped: Callable[[], bool],
    comparator: Mapping[str, Array] | None = None,
    observe: Callable[[Array, Array], None] | None = None,
) -> int:
    """Train until the epochs are done, a stop condition holds, or `stopped()` says so.

    A push that is refused as STALE, or that a shard has lost because it was restored, is counted as STALE and its batch
    passed over; the next step pulls anew.

    Args:
        mirror: its client has joined; its model's parameters are overwritten by each pull.
        report: called after every step, and by rank 0 after every epoch's evaluation.
        stopped: asked before every step.
        comparator: parameters to compute every mini-batch's loss at as well, as for regret.
        observe: called before every push with the parameters pulled and the gradient, all tensors as one.

    Returns:
        The last step made, counted from the start of the job.

    Raises:
        NotFinite: a loss or a gradient is NaN or infinite: the training has diverged.
    """
    client, model = mirror.client, mirror.model
    best = None
    if comparator is not None:
        best = deepcopy(model)
        put(best, comparator)
    mirror.begin()
    batch_of = task.batches(part)
    per_epoch = part.steps_per_epoch(task.examples)
    last = part.last_step(task.examples)
    recent: list[float] = []
    ahead: tuple[B, Clocks] | None = None  # this step's batch, and the parameters' clock, if they are there
    while client.seq < last and not stopped():
        step = client.seq
        seed = part.random(step)
        if ahead is not None:
            batch, clock = ahead
        else:
            batch = batch_of(step)
            clock = mirror.pull(task.rows(batch))
        loss = gradient(task, model, batch, seed=seed)
        if not math.isfinite(loss):
            raise NotFinite(f"the loss of step {step + 1} is {loss}", field="loss", fix="lower the rate")
        gradients = mirror.gradients()
        if observe is not None:
            observe(_flat(mirror.arrays, mirror.arrays), _flat(mirror.arrays, gradients))
        recent = [*recent[-19:], loss]
        reached = part.target_loss is not None and len(recent) == 20 and sum(recent) / 20 <= part.target_loss
        evaluates = part.evaluate and part.rank == 0 and (step + 1) % per_epoch == 0
        if reached or evaluates or step + 1 == last:
            receipt, ahead = mirror.push(gradients, clock), None
        else:
            following = batch_of(step + 1)
            receipt, pulled = mirror.push_pull(gradients, clock, task.rows(following))
            ahead = None if pulled is None else (following, pulled)
        done = (step + 1) / per_epoch
        report(
            Step(
                part.rank,
                step + 1,
                done,
                loss,
                math.nan if best is None else loss_of(task, best, batch, seed=seed),
                receipt.outcome,
                receipt.staleness,
                receipt.clock.newest,
                time.time(),
            )
        )
        if evaluates:
            measured_at = mirror.pull(training=False)
            numbers = measured(task.evaluate, model)
            if numbers is not None:
                report(EpochReport(part.rank, round(done), measured_at.newest, numbers, time.time()))
        if reached:
            break
    return client.seq


def _flat(parameters: Mapping[str, Array], found: Mapping[str, Gradient]) -> Array:
    """All tensors as one; zeros where nothing is found for one."""
    each = [np.asarray(found.get(name, np.zeros_like(w))).ravel() for name, w in parameters.items()]
    return np.concatenate(each)


def gradient(task: Task[B], model: nn.Module, batch: B, *, seed: int) -> float:
    """Leave the gradient of a batch's loss in `.grad`; returns the loss. `seed` is of dropout and other draws."""
    model.zero_grad(set_to_none=True)
    loss = _loss(task, model, batch, seed)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


@torch.no_grad()
def loss_of(task: Task[B], model: nn.Module, batch: B, *, seed: int) -> float:
    """What `gradient` returns, without the gradient."""
    return float(_loss(task, model, batch, seed))


def _loss(task: Task[B], model: nn.Module, batch: B, seed: int) -> torch.Tensor:
    model.train()
    torch.manual_seed(seed)
    return task.loss(model, batch)


Numbers = TypeVar("Numbers")


@torch.no_grad()
def measured(measure: Callable[[nn.Module], Numbers], model: nn.Module) -> Numbers:
    """What a task's `evaluate` or `summary` finds, in evaluation mode and without gradients."""
    model.eval()
    return measure(model)


class Mirror:
    """A model in step with a job: its parameters are pulled, and its gradients pushed. It notes where the time goes.

    The parameters are numpy arrays: on the CPU the model's own memory, elsewhere a copy on the host.

    Attributes:
        steps: pushes made.
        seconds: spent in each part; what is neither pull nor push counts as computing, and an exchange that pushes and
            pulls as a push.
    """

    def __init__(self, client: Client, model: nn.Module, device: str = "cpu") -> None:
        self.client, self.model = client, model.to(device)
        self._parameters = dict(model.named_parameters())
        self._host = {name: p.detach().cpu() for name, p in self._parameters.items()}
        self.arrays: dict[str, Array] = {name: host.numpy() for name, host in self._host.items()}
        self.steps = 0
        self.seconds = dict.fromkeys(("pull", "compute", "push"), 0.0)
        self.begin()

    def begin(self) -> None:
        """The loop begins now."""
        self._last = time.perf_counter()

    def pull(self, rows: Mapping[str, Array] | None = None, *, training: bool = True) -> Clocks:
        """Bring the job's parameters, or some of their rows, into the model."""
        while True:
            try:
                with self._during("pull"):
                    found, clock = self.client.pull(into=self.arrays, rows=rows, training=training)
            except RolledBack:  # said once for each restore
                continue
            self._load(found, rows)
            return clock

    def push(self, gradients: Mapping[str, Gradient], clock: Clocks) -> JobReceipt:
        """Push gradients of parameters that were pulled at `clock`."""
        try:
            with self._during("push"):
                return self.client.push(gradients, clock)
        except RolledBack as error:
            return _lost(error)

    def push_pull(
        self, gradients: Mapping[str, Gradient], clock: Clocks, rows: Mapping[str, Array] | None
    ) -> tuple[JobReceipt, Clocks | None]:
        """Push gradients, and bring the parameters after them into the model; the clock is None where that failed."""
        try:
            with self._during("push"):
                receipt, found, pulled = self.client.push_pull(gradients, clock, into=self.arrays, rows=rows)
        except RolledBack as error:
            return _lost(error), None
        self._load(found, rows)
        return receipt, pulled

    @contextmanager
    def _during(self, part: str) -> Iterator[None]:
        """Time a pull or a push; a push that ends without an error is a step."""
        self._until("compute")
        try:
            yield
        finally:
            self._until(part)
        self.steps += part == "push"

    def _until(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    @torch.no_grad()
    def _load(self, found: Mapping[str, Array], rows: Mapping[str, Array] | None) -> None:
        for name, numbers in (rows or {}).items():
            self.arrays[name][numbers] = found[name]
        for name, parameter in self._parameters.items():
            if parameter.device.type != "cpu":
                parameter.copy_(self._host[name])

    def gradients(self) -> dict[str, Gradient]:
        """The gradients by name, sparse ones as rows; a parameter without one is left out."""
        grads = {name: p.grad.detach().cpu() for name, p in self._parameters.items() if p.grad is not None}
        return {name: as_rows(name, grad) or grad.numpy() for name, grad in grads.items()}


def _lost(error: RolledBack) -> JobReceipt:
    """What became of a push that a restored shard does not hold."""
    return JobReceipt(tuple(Receipt(Outcome.STALE, Stamp(*stamp), 0, error.problem) for stamp in error.after))
