"""Regret as the service counts it, against a recomputation that shares nothing with it."""

from __future__ import annotations

import csv
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from adamserve import optim, testing
from adamserve.errors import NotFinite
from adamserve.train import run
from adamserve.train.config import TrainConfig
from adamserve.train.task import Part
from tests.conftest import Refused
from tests.optim.oracle import oracle
from workers.data import load
from workers.task import NetworkRecipe

L2, BATCH, SEED = 0.01, 32, 4
RULE = optim.Adam(lr=0.1, lr_schedule="inverse_sqrt", beta1_decay=0.99, eps=0.0)


def losses_and_gradient(w: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Penalised cross-entropy of each example, and the gradient of their mean; w is [classes, features + 1]."""
    logits = x @ w[:, :-1].T + w[:, -1]
    logits -= logits.max(axis=1, keepdims=True)
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    penalty = 0.5 * L2 * float((w * w).sum())
    losses = -np.log(p[np.arange(len(y)), y]) + penalty
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    return losses, np.hstack([p.T @ x, p.sum(axis=0)[:, None]]) + L2 * w


def train(run_dir: Path, **options: Any) -> dict[str, Any]:
    """A run without Ray; what `run.json` holds."""
    recipe = NetworkRecipe(network="logreg", **options.pop("recipe", {}))
    config = TrainConfig(run_dir=run_dir, recipe=recipe, batch=BATCH, **options)
    return run.train(
        config, on_progress=lambda progress: None, stop=threading.Event(), start=testing.Service.start
    )


def test_the_service_s_regret_is_the_recorded_pushes_recomputed(tmp_path: Path) -> None:
    recipe = {"dataset": "digits", "l2": L2, "regret": True, "dtype": "float64"}
    found = train(tmp_path, recipe=recipe, rule=RULE, workers=1, epochs=6, seed=SEED)["regret"]
    with (tmp_path / "metrics.csv").open() as file:
        pushes = list(csv.DictReader(file))
    data = load("digits")
    x, y = np.asarray(data.train_x, np.float64), data.train_y
    # The trajectory anew, from the pushes' steps: float64 numpy and the oracle's Adam.
    update, w, met = oracle(RULE), np.zeros((10, 65)), []
    part = Part(rank=0, workers=1, batch=BATCH, seed=SEED)
    batches = [part.examples(len(y), int(push["step"]) - 1) for push in pushes]
    for t, batch in enumerate(batches, 1):
        losses, g = losses_and_gradient(w, x[batch], y[batch])
        met.append(losses.mean())
        w = update(w, g, t)
    np.testing.assert_allclose([float(push["loss"]) for push in pushes], met, rtol=1e-9)
    # W* over the same batches in the same order, by another method than the service's.
    every = np.concatenate(batches)

    def objective(flat: Any) -> tuple[float, Any]:
        losses, g = losses_and_gradient(flat.reshape(10, 65), x[every], y[every])
        return float(losses.mean()), g.ravel()

    best = minimize(
        objective, np.zeros(650), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000}
    )
    assert np.linalg.norm(best.jac) < 1e-6  # so the minimum is within 1e-12 / (2 l2) = 5e-11
    expected = float(np.sum(met)) - len(met) * best.fun
    assert found["steps"] == len(met) == 6 * 45
    assert found["regret"] == pytest.approx(expected, rel=1e-6)
    assert found["average_regret"] == pytest.approx(expected / len(met), rel=1e-6)
    # Live, the comparator is the best for the whole training set, which is not quite the best for the batches seen.
    comparator = [float(push["comparator_loss"]) for push in pushes]
    assert found["live"]["regret"] == pytest.approx(np.sum(met) - np.sum(comparator), rel=1e-9)
    assert 0 < found["regret"] - found["live"]["regret"] < 0.01 * found["regret"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mlp", "--regret"], "--regret: mlp on digits has no convex loss (use logreg on dense data)"),
        (["logreg", "--regret"], "--l2: must be positive for a minimum to exist (e.g. 0.001)"),
        (["logreg", "--l2", "-1"], "--l2: must be at least 0, got -1.0"),
        (
            ["mlp", "--l2", "0.1"],
            "--l2: mlp on digits has no penalty in its loss (use -o l2=... (the rule's))",
        ),
        (["mlp", "--dtype", "float16"], "--dtype: must be float32 or float64, got 'float16'"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    arguments: list[str], message: str, tmp_path: Path, refused: Refused
) -> None:
    assert refused("train", *arguments, "--run-dir", tmp_path / "run").startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "bounded"),
    [
        ({}, True),
        ({"recipe": NetworkRecipe(network="logreg", l2=L2)}, False),
        ({"resume": True}, False),
        ({"rule": optim.Adam()}, False),
        ({"rule": replace(RULE, eps=1e-8)}, False),
        ({"rule": optim.AdaGrad()}, False),
    ],
)
def test_the_bound_is_shown_where_the_theorem_is_about_the_run(change: dict[str, Any], bounded: bool) -> None:
    counting = NetworkRecipe(network="logreg", l2=L2, regret=True)
    config = TrainConfig(run_dir=Path("x"), **{"recipe": counting, "rule": RULE, **change})
    assert (config.theorem == RULE) is bounded
    assert (config.theorem is None) is not bounded


def test_training_that_diverges_says_so(tmp_path: Path) -> None:
    # From zero weights a bias's gradient is 0.1 - k/32 for a whole k, so at least 0.00625 in size: at this rate the
    # first update, whoever's it is, is beyond float32, and whoever pulls next has no finite loss. Every worker pulls
    # again after its own first push.
    with pytest.raises(NotFinite, match=r"loss: the loss of step [12] is (nan|inf) \(lower the rate\)"):
        train(tmp_path / "r", rule=optim.SGD(lr=1e41), epochs=1)
