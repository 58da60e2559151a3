"""Which examples a worker takes at a step: a pure function, so that a resumed worker takes the same ones."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def steps_per_epoch(n: int, batch: int, workers: int) -> int:
    """Steps that each worker makes while all of them together see `n` examples once."""
    return -(-n // (batch * workers))


def indices(*, n: int, batch: int, workers: int, rank: int, step: int, seed: int) -> NDArray[np.int64]:
    """The mini-batch of one worker at one step.

    An epoch's permutation depends on the seed and the epoch alone; step k of the epoch deals its next workers*batch
    examples out by rank. The last step is filled from the permutation's beginning.

    Args:
        n: examples in the training set.
        batch: examples in a mini-batch.
        workers, rank: how many deal, and which of them this is.
        step: from 0, counted from the start of the job.
        seed: of the job.

    Returns:
        [batch] indices.
    """
    per_epoch = steps_per_epoch(n, batch, workers)
    epoch, within = divmod(step, per_epoch)
    start = (within * workers + rank) * batch
    return _permutation(n, seed, epoch)[np.arange(start, start + batch) % n]


def step_seed(seed: int, rank: int, step: int) -> int:
    """A 63-bit seed for everything else that is random in a step."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(n)
