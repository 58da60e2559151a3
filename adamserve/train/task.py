"""What is trained: a model, its batches and its loss. The loop asks a task, and knows no network and no data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adamserve.errors import InvalidArgument, unknown
from adamserve.shard.gradients import borrow
from adamserve.shard.sparse import spec_of
from adamserve.values import Array, Outcome, TensorSpec

GROUP = "adamserve.tasks"
"""An entry point of this group names a callable that takes a task's options by keyword and returns its `Recipe`."""

ORDER, STEP = 0, 1
"""Streams of one job's seed. SeedSequence([seed, a]) equals SeedSequence([seed, a, 0]), so plain lists would give an
epoch's permutation and some step's dropout the same stream; spawn keys keep them apart."""

B = TypeVar("B")
"""Whatever a task's batches are made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One worker's part in a job: which examples it takes at a step, what is random in them, and when it ends.

    All is a function of the fields and the step, so that a worker that goes on takes what it would have taken.

    Attributes:
        rank, workers: this worker, from 0, and all workers of the job.
        batch: examples in a worker's mini-batch.
        seed: of the data order and of dropout.
        epochs: stop after this many passes over the training set by all workers together.
        max_steps: stop after this many pushes of this worker; None sets no such bound.
        target_loss: stop when the training loss of the last 20 batches, on average, is at most this.
        device: where the gradient is computed, as torch names it.
        evaluate: after every epoch rank 0 evaluates.

    Raises:
        InvalidArgument: a number is too small, or `rank` is not below `workers`.
    """

    rank: int
    workers: int
    batch: int
    seed: int
    epochs: int = 1
    max_steps: int | None = None
    target_loss: float | None = None
    device: str = "cpu"
    evaluate: bool = True

    def __post_init__(self) -> None:
        _check(1, workers=self.workers, batch=self.batch, epochs=self.epochs, max_steps=self.max_steps)
        _check(0, rank=self.rank, seed=self.seed)
        if not self.rank < self.workers:
            raise InvalidArgument(
                f"must be below the number of workers, {self.workers}, got {self.rank}", field="rank"
            )

    def steps_per_epoch(self, n: int) -> int:
        """Steps that each worker makes while all of them together see `n` examples."""
        _check(1, n=n)
        return -(-n // (self.batch * self.workers))

    def last_step(self, n: int) -> int:
        """Steps that this worker makes in all, from the start of the job, of `n` examples."""
        steps = self.epochs * self.steps_per_epoch(n)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def examples(self, n: int, step: int) -> NDArray[np.int64]:
        """The numbers, [batch] from 0 to n - 1, of the examples of a step, counted from 0; the caller's own.

        An epoch's permutation depends on the seed and the epoch alone; each step deals its next workers * batch
        examples out by rank. The last step is filled from the permutation's beginning, so over an epoch every
        example is dealt at least once, and the counts of any two differ by at most one. numpy does not promise
        that `Generator.permutation` stays the same for ever; a test pins it.
        """
        _check(0, step=step)
        epoch, within = divmod(step, self.steps_per_epoch(n))
        start = (within * self.workers + self.rank) * self.batch
        return _permutation(n, self.seed, epoch)[np.arange(start, start + self.batch) % n]

    def random(self, step: int) -> int:
        """A 63-bit seed for whatever else is random in a step; neighbouring steps, ranks and seeds have unrelated ones.

        numpy promises that SeedSequence's values never change.
        """
        _check(0, step=step)
        mixed = np.random.SeedSequence(self.seed, spawn_key=(STEP, self.rank, step))
        return int(mixed.generate_state(1, np.uint64)[0]) >> 1


@lru_cache(maxsize=4)  # one epoch's, and its neighbour's for workers in other threads
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(ORDER, epoch))))
    permutation = order.permutation(n).astype(np.int64, copy=False)
    permutation.flags.writeable = False
    return permutation


def _check(least: int, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and not number >= least:
            raise InvalidArgument(f"must be at least {least}, got {number}", field=name)


@dataclass(frozen=True, slots=True)
class Step:
    """What a worker reports of a step, counted from 1: its loss at the pulled parameters, and what became of its push.

    Attributes:
        epoch: passes over the training set by then.
        comparator_loss: the same mini-batch's loss at the comparator; NaN without one.
        staleness, clock: of the push, in updates.
        at: in seconds since 1970.
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


class Task(Protocol[B]):
    """What a run trains: a value that never changes. It is pickled, and each worker has a copy.

    A class that derives from this one has to write `examples`, `model`, `batches` and `loss`; the rest is optional.
    """

    @property
    def name(self) -> str:
        """The task's name, for people."""
        return type(self).__name__

    @property
    def examples(self) -> int:
        """Examples in the training set: an epoch is as many, taken by all workers together."""

    @property
    def tables(self) -> Sequence[str]:
        """Names of the parameters whose first rows are the busiest; they are spread over the shards."""
        return ()

    @property
    def lazy(self) -> bool:
        """Whether rows that a push does not name stay as they are, whatever their momentum."""
        return False

    def model(self) -> nn.Module:
        """Make the model on the CPU, in the job's dtype; draw its weights from torch's generator."""

    def batches(self, part: Part) -> Callable[[int], B]:
        """Prepare a worker's batches; returns a pure function from the step, counted from 0, to its batch."""

    def loss(self, model: nn.Module, batch: B) -> torch.Tensor:
        """Compute a batch's mean loss, a scalar to differentiate. Draw random numbers from torch's generator only."""

    def rows(self, batch: B) -> Mapping[str, Array] | None:
        """Name by tensor the rows that a batch needs, increasing; None stands for all tensors, whole."""
        return None

    def evaluate(self, model: nn.Module) -> Mapping[str, float] | None:
        """Measure a model between two epochs, in evaluation mode and without gradients; None measures nothing."""
        return None

    def summary(self, model: nn.Module) -> Mapping[str, float]:
        """Measure the model that a run ends with, likewise."""
        return self.evaluate(model) or {}

    def comparator(self) -> Mapping[str, Array] | None:
        """Find the parameters that the regret is counted against while a run goes on; None counts no regret."""
        return None

    def regret(self, steps: Sequence[Step], part: Part) -> Mapping[str, Any] | None:
        """Count the regret of a whole run in hindsight, from the steps of all workers and the part of any."""
        return None


class Recipe(Protocol):
    """A task before its data are loaded: its checked options, which a command line gives and a checkpoint keeps."""

    @property
    def label(self) -> str:
        """The task's name as a part of a folder's name."""

    @property
    def counts_regret(self) -> bool:
        """Whether the task has a comparator."""

    def settings(self) -> Mapping[str, Any]:
        """The options that make the task what it is, as JSON; `network` is its name among the entry points."""

    def resumed(self, settings: Mapping[str, Any]) -> Self:
        """The recipe of a checkpoint's settings, with this one's paths."""

    def load(self, progress: Callable[[str], None]) -> Task[Any]:
        """Load the data, and say so where it takes long.

        Raises:
            AdamServeError: the data cannot be had, or do not fit the options.
        """


def recipe(name: str, **options: Any) -> Recipe:
    """Check the options of the task of that name.

    Raises:
        InvalidArgument: no installed package has such a task, or the task has no such option, or refuses its value.
    """
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not known:
        fix = "install a package that has one"
        raise InvalidArgument(f"there is no network {name!r}", field="network", fix=fix)
    if name not in known:
        raise unknown("network", name, sorted(known), field="network")
    make = known[name].load()
    taken = inspect.signature(make).parameters
    for option in options:
        if option not in taken:
            raise InvalidArgument(f"{name} has no such option", field=option, fix="leave it out")
    made: Recipe = make(**options)
    return made


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, and put it back afterwards; another thread that draws meanwhile is disturbed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too, and for good
        yield


def initial_model(task: Task[Any], seed: int) -> nn.Module:
    """Make a task's model, its initial weights a function of the seed alone."""
    with seeded(seed):
        return task.model()


def tensor_specs(task: Task[Any], model: nn.Module) -> tuple[TensorSpec, ...]:
    """The model's parameters as a job's tensors, in the model's order."""
    return tuple(spec_of(name, p.detach().numpy(), task.tables) for name, p in model.named_parameters())


def arrays(model: nn.Module) -> dict[str, Array]:
    """The parameters of a model on the CPU, by name; they share its memory."""
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def put(model: nn.Module, parameters: Mapping[str, Array]) -> None:
    """Copy arrays into a model's parameters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(borrow(parameters[name]))
