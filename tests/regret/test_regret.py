"""Accounts, slopes, the theorem's bound, and the minimum that regret is measured against."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamserve import optim, regret
from adamserve.errors import InvalidArgument
from adamserve.regret import RECENT, SNAPSHOTS_PER_DECADE, Account, Constants, Meter

THEOREM = optim.Adam(lr=0.1, beta1=0.9, beta2=0.99, eps=0.0, beta1_decay=0.5, lr_schedule="inverse_sqrt")
SEEN = Constants(steps=4, D=2.0, D_inf=1.0, G=3.0, G_inf=0.5, roots=7.0, norms=5.0, elements=6)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=200))
def test_the_account_sums_differences(pairs: list[tuple[float, float]]) -> None:
    account = Account()
    for loss, comparator in pairs:
        account.add(loss, comparator)
    exact = sum(Fraction(a) - Fraction(b) for a, b in pairs)
    # Compensated: the error does not grow with the number of terms. Each term is itself rounded once.
    size = sum(abs(a - b) for a, b in pairs)
    assert abs(Fraction(account.regret) - exact) <= Fraction(4 * 2.0**-53 * size)
    assert account.steps == len(pairs)
    assert account.average == account.regret / len(pairs)


def test_small_terms_outlive_a_large_sum() -> None:
    account = Account()
    account.add(1e16, 0.0)
    for _ in range(1000):
        account.add(1.0, 0.0)
    assert account.regret == 1e16 + 1000


def test_without_a_comparator_there_is_a_best_loss_and_no_regret() -> None:
    account = Account()
    assert (account.loss, account.best, account.average) == (None, None, None)
    for loss in [3.0] * RECENT + [1.0] * RECENT + [2.0] * 10:
        account.add(loss)
    assert account.loss == pytest.approx((40 * 1.0 + 10 * 2.0) / RECENT)
    assert account.best == 1.0
    assert (account.steps, account.regret, account.average) == (0, 0.0, None)


@pytest.mark.parametrize(
    ("loss", "comparator", "field"),
    [(math.nan, 1.0, "loss"), (math.inf, None, "loss"), (1.0, math.nan, "comparator_loss")],
)
def test_a_loss_that_is_not_finite_changes_nothing(loss: float, comparator: float | None, field: str) -> None:
    account = Account()
    account.add(2.0, 1.0)
    with pytest.raises(InvalidArgument) as caught:
        account.add(loss, comparator)
    assert caught.value.field == field
    assert (account.loss, account.steps, account.regret) == (2.0, 1, 1.0)


@pytest.mark.parametrize("exponent", [-0.5, -1.0, -0.25])
def test_the_slope_of_a_power(exponent: float) -> None:
    steps = [10 ** (k / 4) for k in range(17)]
    # Only the last two decades are a power; before them it is flat.
    averages = [3 * max(t, 100.0) ** exponent for t in steps]
    assert regret.slope(steps, averages) == pytest.approx(exponent, abs=1e-12)


def test_a_slope_needs_three_positive_values() -> None:
    with pytest.raises(InvalidArgument, match="2 values in the last 2 decades"):
        regret.slope([1, 1000, 2000], [1.0, 1.0, 1.0])
    with pytest.raises(InvalidArgument, match="averages: is not positive"):
        regret.slope([10, 20, 30], [1.0, 0.0, 1.0])


def test_the_bound_is_the_theorem_s() -> None:
    """Term by term, with numbers that a pocket calculator checks: gamma = 0.81 / sqrt(0.99)."""
    gamma = 0.81 / math.sqrt(0.99)
    first = 4.0 / (2 * 0.1 * 0.1) * 7.0
    second = 0.1 * 1.9 * 0.5 / (0.1 * 0.1 * (1 - gamma) ** 2) * 5.0
    third = 6 * 1.0 * 0.5 * 0.1 / (2 * 0.1 * 0.1 * 0.25)
    assert regret.gamma(THEOREM) == pytest.approx(gamma)
    assert regret.adam_bound(THEOREM, SEEN) == pytest.approx(first + second + third, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"lr_schedule": "constant"}, "lr_schedule"),
        ({"lr_decay": 0.1}, "lr_decay"),
        ({"beta1_decay": 1.0}, "beta1_decay"),
        ({"beta1": 0.999, "beta2": 0.9}, "beta2"),
        ({"beta2": 0.0}, "beta2"),
        ({"lr": 0.0}, "lr"),
        ({"bias_correction": False}, "bias_correction"),
        ({"amsgrad": True}, "amsgrad"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"l2": 0.1}, "l2"),
        ({"eps": 1e-8}, "eps"),
    ],
)
def test_a_rule_outside_the_theorem_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        regret.adam_bound(replace(THEOREM, **change), SEEN)
    assert caught.value.field == field


def test_the_meter_measures() -> None:
    rng = np.random.default_rng(0)
    points, gradients = rng.standard_normal((2, 40, 3))
    best = np.array([5.0, 0.0, 0.0])
    meter = Meter(THEOREM, 3)
    for w, g in zip(points, gradients, strict=True):
        meter.add(w, g)
    found = meter.measured(best)
    everything = np.vstack([points, best])
    weights = 0.01 * 0.99 ** np.arange(39, -1, -1)
    v_hat = (weights[:, None] * gradients**2).sum(axis=0) / weights.sum()
    assert found.steps == 40
    assert found.elements == 3
    assert pytest.approx(max(np.linalg.norm(gradients, axis=1))) == found.G
    assert found.G_inf == pytest.approx(np.abs(gradients).max())
    assert found.D_inf == pytest.approx(np.ptp(everything, axis=0).max())
    assert found.roots == pytest.approx(np.sqrt(40 * v_hat).sum(), rel=1e-12)
    assert found.norms == pytest.approx(np.linalg.norm(gradients, axis=0).sum(), rel=1e-12)
    farthest = max(np.linalg.norm(a - b) for a in everything for b in everything)
    nearest_to_best = max(np.linalg.norm(points[0] - best), np.linalg.norm(points[1] - best))
    assert nearest_to_best <= found.D <= farthest
    with pytest.raises(InvalidArgument, match=r"shapes \(2,\) and \(2,\), not \(3,\)"):
        meter.add(np.zeros(2), np.zeros(2))


def test_workers_meters_are_one_together() -> None:
    """As one meter that saw everything, but for v: there each worker's own mean of its squares counts by its steps."""
    rng = np.random.default_rng(0)
    points, gradients = rng.standard_normal((2, 60, 3))
    best = np.array([5.0, 0.0, 0.0])
    whole, first, second = (Meter(THEOREM, 3) for _ in range(3))
    for step, (w, g) in enumerate(zip(points, gradients, strict=True)):
        whole.add(w, g)
        (second if step % 3 == 0 else first).add(w, g)
    merged, expected = Meter.merged([first, second]).measured(best), whole.measured(best)
    for name in ("steps", "D_inf", "G", "G_inf", "elements"):
        assert getattr(merged, name) == getattr(expected, name)
    assert merged.norms == pytest.approx(expected.norms, rel=1e-12)
    v = [
        (0.01 * 0.99 ** np.arange(len(g) - 1, -1, -1)[:, None] * g**2).sum(axis=0) / (1 - 0.99 ** len(g))
        for g in (np.delete(gradients, np.s_[::3], axis=0), gradients[::3])
    ]
    assert merged.roots == pytest.approx(np.sqrt(60 * (40 * v[0] + 20 * v[1]) / 60).sum(), rel=1e-12)
    alone = Meter.merged([whole]).measured(best)
    assert alone.roots == pytest.approx(expected.roots, rel=1e-12)


def test_a_meter_grows_by_the_logarithm_of_the_steps() -> None:
    """It keeps some of the parameters' moments, travels between processes, and is copied at many a T."""
    meter, sizes = Meter(THEOREM, 100), []
    for step in range(1, 10_001):
        meter.add(np.full(100, step), np.ones(100))
        if step in (100, 1000, 10_000):
            sizes.append(len(pickle.dumps(meter)))
    a_decade = SNAPSHOTS_PER_DECADE * 1000  # 100 float64, and what describes the array
    assert max(np.diff(sizes)) < a_decade


def test_the_bound_holds_on_a_quadratic_of_one_number() -> None:
    """A run that is worked out by hand: losses (w - 1)^2 / 2 from 0, W* = 1."""
    w, m, v, product, total = 0.0, 0.0, 0.0, 1.0, 0.0
    meter = Meter(THEOREM, 1)
    for t in range(1, 201):
        g = w - 1.0
        meter.add(np.array([w]), np.array([g]))
        total += 0.5 * g * g
        b1 = 0.9 * 0.5 ** (t - 1)
        m, v, product = b1 * m + (1 - b1) * g, 0.99 * v + 0.01 * g * g, product * b1
        w -= 0.1 / math.sqrt(t) * (m / (1 - product)) / math.sqrt(v / (1 - 0.99**t))
    assert 0 < total < regret.adam_bound(THEOREM, meter.measured(np.array([1.0])))


def test_the_minimum_of_a_quadratic() -> None:
    rng = np.random.default_rng(1)
    root = rng.standard_normal((20, 20))
    matrix, centre = root @ root.T + np.eye(20), rng.standard_normal(20)

    def objective(w: Any) -> tuple[float, Any]:
        pull = matrix @ (w - centre)
        return float(0.5 * (w - centre) @ pull), pull

    found = regret.minimize(objective, np.zeros(20), gradient_norm=1e-9)
    assert found.gradient_norm <= 1e-9
    # The smallest eigenvalue is at least 1: the distance is at most the gradient's norm.
    assert np.linalg.norm(found.w - centre) <= 1e-9


def test_a_minimum_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match=r"gradient_norm: 1e-08 was not reached .* bounded from below"):
        regret.minimize(lambda w: (float(-w @ w), -2 * w), np.ones(2))
