"""Which examples a worker takes at a step: a pure function, so that a resumed worker takes the same ones."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from adamserve.errors import InvalidArgument

# Streams of one job's seed. SeedSequence([seed, a]) equals SeedSequence([seed, a, 0]), so plain lists would
# give an epoch's permutation and some step's dropout the same stream; spawn keys keep them apart.
ORDER, STEP = 0, 1


def steps_per_epoch(n: int, batch: int, workers: int) -> int:
    """Steps that each worker makes while all of them together see `n` examples: ceil(n / (batch * workers)).

    Raises:
        InvalidArgument: an argument is below 1.
    """
    _check(1, n=n, batch=batch, workers=workers)
    return -(-n // (batch * workers))


def indices(*, n: int, batch: int, workers: int, rank: int, step: int, seed: int) -> NDArray[np.int64]:
    """The mini-batch of one worker at one step.

    An epoch's permutation depends on the seed and the epoch alone; each step deals its next workers * batch
    examples out by rank. The last step is filled from the permutation's beginning, so over an epoch every
    example is dealt at least once, and the counts of any two differ by at most one. numpy does not promise
    that `Generator.permutation` stays the same for ever; a test pins it.

    Args:
        n: examples in the training set.
        batch: examples in a mini-batch.
        workers, rank: how many workers deal, and which of them this is, from 0.
        step: from 0, counted from the start of the job.
        seed: the job's, not negative.

    Returns:
        [batch] indices into the training set; the caller's own.

    Raises:
        InvalidArgument: n, batch or workers is below 1, rank is not below workers, or rank, step or seed is
            negative.
    """
    _check(0, seed=seed, rank=rank, step=step)
    epoch, within = divmod(step, steps_per_epoch(n, batch, workers))
    if not rank < workers:
        raise InvalidArgument(f"must be below the number of workers, {workers}, got {rank}", field="rank")
    start = (within * workers + rank) * batch
    return _permutation(n, seed, epoch)[np.arange(start, start + batch) % n]


def step_seed(seed: int, rank: int, step: int) -> int:
    """A 63-bit seed for everything else that is random in a worker's step, such as dropout.

    Well mixed: neighbouring arguments give unrelated seeds (numpy's SeedSequence, whose values never change).

    Raises:
        InvalidArgument: an argument is negative.
    """
    _check(0, seed=seed, rank=rank, step=step)
    return (
        int(np.random.SeedSequence(seed, spawn_key=(STEP, rank, step)).generate_state(1, np.uint64)[0]) >> 1
    )


@lru_cache(maxsize=4)  # one epoch's, and its neighbour's for workers in other threads
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(ORDER, epoch))))
    permutation = order.permutation(n).astype(np.int64, copy=False)
    permutation.flags.writeable = False
    return permutation


def _check(least: int, **numbers: int) -> None:
    for name, value in numbers.items():
        if not value >= least:
            raise InvalidArgument(f"must be at least {least}, got {value}", field=name)
