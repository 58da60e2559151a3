"""The losses in hindsight agree with the network that is trained, and the minimum is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adamserve.errors import InvalidArgument
from adamserve.train.loop import gradient
from adamserve.train.task import Part, Step
from adamserve.values import Outcome
from workers.data import Dataset, load
from workers.hindsight import Hindsight
from workers.task import Batch, NetworkTask


def taken(rank: int, step: int, loss: float) -> Step:
    return Step(rank, step, 0.0, loss, float("nan"), Outcome.APPLIED, 0, step, 0.0)


L2 = 0.01
RNG = np.random.default_rng(0)
DATA = Dataset(
    "some",
    RNG.standard_normal((30, 4)).astype(np.float32),
    np.arange(30, dtype=np.int64) % 3,
    np.zeros((1, 4), np.float32),
    np.zeros(1, np.int64),
    classes=3,
)
TASK = NetworkTask(network="logreg", data=DATA, l2=L2, dtype="float64")
BATCHES = [np.array([0, 1, 2, 3]), np.array([3, 4, 5, 6]), np.array([29, 0, 0, 7])]


def model_at(hindsight: Hindsight, w: np.ndarray) -> torch.nn.Module:
    model = TASK.model()
    model.load_state_dict({name: torch.from_numpy(a) for name, a in hindsight.as_parameters(w).items()})
    return model


def trained_loss(model: torch.nn.Module, batch: np.ndarray) -> float:
    assert isinstance(DATA.train_x, np.ndarray)
    x, y = torch.from_numpy(DATA.train_x[batch]).double(), torch.from_numpy(DATA.train_y[batch])
    return gradient(TASK, model, Batch(x, y), seed=0)


def test_losses_are_those_of_the_training_loop() -> None:
    hindsight = Hindsight(DATA, L2)
    w = RNG.standard_normal(hindsight.elements)
    model = model_at(hindsight, w)
    expected = [trained_loss(model, batch) for batch in BATCHES]
    # The same sums in float64, in another order: a few roundings.
    np.testing.assert_allclose(hindsight.losses(w, BATCHES), expected, rtol=1e-13)


def test_the_minimum_is_where_torch_finds_no_gradient() -> None:
    hindsight = Hindsight(DATA, L2)
    counts = np.bincount(np.concatenate(BATCHES), minlength=30)
    found = hindsight.minimum(counts)
    model = model_at(hindsight, found.w)
    everything = np.concatenate(BATCHES)
    value = trained_loss(model, everything)
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert float(norm) <= 1.01e-8
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.value == pytest.approx(hindsight.losses(found.w, BATCHES).mean(), rel=1e-12)
    # Every other point is worse: a convex function with a penalty has one minimum.
    for _ in range(20):
        other = found.w + 0.01 * RNG.standard_normal(found.w.size)
        assert hindsight.losses(other, BATCHES).mean() > found.value


def test_counts_of_one_are_the_whole_set() -> None:
    hindsight = Hindsight(DATA, L2)
    whole, once = hindsight.minimum(), hindsight.minimum(np.ones(30, np.int64))
    np.testing.assert_allclose(whole.w, once.w, atol=1e-6)  # both to 1e-8 / l2


def test_regret_is_the_sum_of_differences() -> None:
    hindsight = Hindsight(DATA, L2)
    part = Part(rank=0, workers=2, batch=4, seed=0)
    steps = [taken(0, 1, 1.5), taken(1, 1, 1.25), taken(0, 2, 1.0)]
    found = hindsight.regret(steps, part)
    batches = [replace(part, rank=step.rank).examples(30, step.step - 1) for step in steps]
    least = hindsight.minimum(np.bincount(np.concatenate(batches), minlength=30)).value
    assert found["steps"] == 3
    assert found["regret"] == pytest.approx(3.75 - 3 * least, rel=1e-12)
    assert found["average_regret"] == pytest.approx(found["regret"] / 3)


def test_what_has_no_minimum_is_refused() -> None:
    for l2 in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidArgument, match=r"l2: must be positive"):
            Hindsight(DATA, l2)
    with pytest.raises(InvalidArgument, match="dataset: regret is counted on dense examples"):
        Hindsight(replace(load("zipf")), L2)
