"""Every example in every epoch, from nothing but (seed, rank, step)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamserve.errors import InvalidArgument
from adamserve.train.task import Part


def indices(*, n: int, batch: int, workers: int, rank: int, step: int, seed: int) -> np.ndarray:
    return Part(rank=rank, workers=workers, batch=batch, seed=seed).examples(n, step)


def step_seed(seed: int, rank: int, step: int) -> int:
    return Part(rank=rank, workers=max(rank, 0) + 1, batch=1, seed=seed).random(step)


def steps_per_epoch(n: int, batch: int, workers: int) -> int:
    return Part(rank=0, workers=workers, batch=batch, seed=0).steps_per_epoch(n)


jobs = st.fixed_dictionaries(
    {"n": st.integers(1, 300), "batch": st.integers(1, 40), "workers": st.integers(1, 5)}
)
seeds = st.integers(0, 2**64)


def epoch_of(job: dict[str, int], epoch: int, seed: int) -> np.ndarray:
    """What all workers together take in an epoch, in order."""
    steps = steps_per_epoch(**job)
    return np.concatenate(
        [
            indices(**job, rank=rank, step=step, seed=seed)
            for step in range(epoch * steps, (epoch + 1) * steps)
            for rank in range(job["workers"])
        ]
    )


@given(job=jobs, epoch=st.integers(0, 50), seed=seeds)
def test_an_epoch_holds_every_example_and_counts_differ_by_at_most_one(
    job: dict[str, int], epoch: int, seed: int
) -> None:
    counts = np.bincount(epoch_of(job, epoch, seed), minlength=job["n"])
    assert len(counts) == job["n"]
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1


@given(job=jobs, seed=seeds)
def test_only_the_last_step_repeats_an_example(job: dict[str, int], seed: int) -> None:
    taken = epoch_of(job, 0, seed)
    before_last = taken[: -job["batch"] * job["workers"]]
    assert len(set(before_last.tolist())) == len(before_last)
    assert len(set(taken[: job["n"]].tolist())) == job["n"]


@given(job=jobs, rank=st.integers(0, 4), step=st.integers(0, 10**9), seed=seeds)
def test_a_batch_is_full_and_the_caller_s_own(job: dict[str, int], rank: int, step: int, seed: int) -> None:
    rank %= job["workers"]
    taken = indices(**job, rank=rank, step=step, seed=seed)
    assert taken.shape == (job["batch"],)
    assert taken.dtype == np.int64
    expected = taken.copy()
    taken[:] = 0
    np.testing.assert_array_equal(indices(**job, rank=rank, step=step, seed=seed), expected)


@given(job=jobs, asked=st.lists(st.integers(0, 400), min_size=1, max_size=12), seed=seeds)
def test_a_resumed_worker_takes_the_same_batches(job: dict[str, int], asked: list[int], seed: int) -> None:
    """Whatever was asked before: in order, out of order, of other epochs."""
    alone = {step: indices(**job, rank=0, step=step, seed=seed).tolist() for step in sorted(asked)}
    assert [indices(**job, rank=0, step=step, seed=seed).tolist() for step in asked] == [
        alone[s] for s in asked
    ]


@given(n=st.integers(1, 300), epoch=st.integers(0, 9), seed=seeds)
def test_the_order_depends_on_neither_batch_nor_workers(n: int, epoch: int, seed: int) -> None:
    """So one worker with a batch of 20 sees what two workers with 10 see together."""
    whole = epoch_of({"n": n, "batch": 20, "workers": 1}, epoch, seed)
    shared = epoch_of({"n": n, "batch": 10, "workers": 2}, epoch, seed)
    np.testing.assert_array_equal(whole, shared)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    job = {"n": 100, "batch": 10, "workers": 1}
    orders = {tuple(epoch_of(job, epoch, seed)) for epoch in range(10) for seed in (0, 1, 2**32, 2**64)}
    assert len(orders) == 40


@pytest.mark.parametrize(
    ("n", "batch", "workers", "steps"),
    [(1, 1, 1, 1), (10, 5, 2, 1), (11, 5, 2, 2), (60_000, 128, 4, 118), (3, 64, 8, 1)],
)
def test_steps_per_epoch_is_rounded_up(n: int, batch: int, workers: int, steps: int) -> None:
    assert steps_per_epoch(n, batch, workers) == steps


def test_orders_and_seeds_are_pinned() -> None:
    """A run that is resumed under another numpy goes on with the batches it would have had."""
    taken = indices(n=1000, batch=8, workers=2, rank=1, step=63, seed=7)
    assert taken.tolist() == [581, 519, 327, 813, 189, 654, 935, 918]
    assert step_seed(7, 1, 63) == 5524610866535667479


@given(seed=seeds, rank=st.integers(0, 2**32), step=st.integers(0, 2**40))
def test_a_step_s_seed_has_63_bits(seed: int, rank: int, step: int) -> None:
    assert 0 <= step_seed(seed, rank, step) < 2**63
    assert step_seed(seed, rank, step) == step_seed(seed, rank, step)


def test_step_seeds_are_well_mixed() -> None:
    drawn = np.array([step_seed(s, r, k) for s in range(8) for r in range(8) for k in range(32)], np.uint64)
    assert len(set(drawn.tolist())) == len(drawn)
    bits = (drawn[:, None] >> np.arange(63, dtype=np.uint64)) & np.uint64(1)
    spread = 6 * 0.5 / np.sqrt(len(drawn))
    assert np.abs(bits.mean(axis=0) - 0.5).max() < spread
    flips = (drawn[1:] ^ drawn[:-1])[:, None] >> np.arange(63, dtype=np.uint64) & np.uint64(1)
    assert np.abs(flips.mean(axis=0) - 0.5).max() < spread


JOB = {"n": 10, "batch": 2, "workers": 2, "rank": 0, "step": 0, "seed": 0}


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 0), ("batch", 0), ("workers", 0), ("rank", -1), ("rank", 2), ("step", -1), ("seed", -1)],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        indices(**{**JOB, field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["seed", "rank", "step"])
def test_a_step_s_seed_is_of_no_negative_number(field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        step_seed(**{"seed": 0, "rank": 0, "step": 0, field: -1})
    assert caught.value.field == field
