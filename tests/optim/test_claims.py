"""What the slides claim of the rules, as tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adamserve import optim

SLIDES_BOUND = 0.1 / math.sqrt(0.001)
"""(1 - beta1)/sqrt(1 - beta2) at the default betas: 3.16."""


def steps_of(rule: optim.Rule, gradients: Any) -> list[float]:
    """The steps of one coordinate, in float64."""
    w = torch.zeros(1, dtype=torch.float64)
    slots = rule.init(w)
    steps = []
    for t, g in enumerate(gradients, start=1):
        before = w.item()
        rule.step_(w, torch.tensor([g], dtype=torch.float64), slots, t)
        steps.append(w.item() - before)
    return steps


def path(rule: optim.Rule, gradients: Any, dtype: torch.dtype = torch.float64) -> Any:
    w = torch.zeros(len(gradients[0]), dtype=dtype)
    slots = rule.init(w)
    for t, g in enumerate(gradients, start=1):
        rule.step_(w, torch.as_tensor(g, dtype=dtype), slots, t)
    return w.numpy()


@pytest.mark.parametrize("c", [1e-8, 1e-3, 0.5, 7.0, 1e6])
@pytest.mark.parametrize(
    "rule", [optim.Adam(lr=0.1, eps=0.0), optim.LpAdam(lr=0.1, p=3), optim.AdaMax(lr=0.1)]
)
def test_the_step_does_not_change_when_all_gradients_are_scaled(rule: optim.Rule, c: float) -> None:
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(100, 20))
    np.testing.assert_allclose(path(rule, gradients), path(rule, c * gradients), rtol=1e-11)


@pytest.mark.parametrize("c", [2.0**-20, 2.0**-3, 2.0, 2.0**20])
def test_scaling_by_a_power_of_two_changes_no_bit(c: float) -> None:
    gradients = np.random.default_rng(0).normal(size=(100, 20))
    rule = optim.Adam(lr=0.1, eps=0.0)
    assert path(rule, gradients).tobytes() == path(rule, c * gradients).tobytes()


def test_one_gradient_after_zeros_steps_the_slides_first_constant() -> None:
    """Long after t = 0, where both corrections are 1: m = (1 - b1) g, v = (1 - b2) g^2."""
    last = steps_of(optim.Adam(lr=1.0, eps=0.0), [0.0] * 20_000 + [3.7])[-1]
    assert abs(last) == pytest.approx(SLIDES_BOUND, rel=1e-6)


@given(g=st.floats(1e-6, 1e6), t=st.integers(1, 60))
def test_steady_gradients_step_lr_the_slides_second_constant(g: float, t: int) -> None:
    for step in steps_of(optim.Adam(lr=0.01, eps=0.0), [g] * t):
        assert step == pytest.approx(-0.01, rel=1e-9)


def supremum(t: int, beta1: float = 0.9, beta2: float = 0.999) -> tuple[float, Any]:
    """sqrt(sum a_i^2/b_i), and the gradients g_i = a_i/b_i that reach it."""
    i = np.arange(1, t + 1)
    a = (1 - beta1) * beta1 ** (t - i) / (1 - beta1**t)
    b = (1 - beta2) * beta2 ** (t - i) / (1 - beta2**t)
    return math.sqrt(np.sum(a * a / b)), a / b


@pytest.mark.parametrize("t", [1, 2, 10, 100, 2000])
def test_the_exact_supremum_is_reached(t: int) -> None:
    bound, gradients = supremum(t)
    rule = optim.Adam(lr=0.01, eps=0.0)
    assert abs(steps_of(rule, gradients)[-1]) == pytest.approx(0.01 * bound, rel=1e-9)
    assert rule.step_bound(t) == pytest.approx(0.01 * bound, rel=1e-9)


def test_the_supremum_exceeds_the_slides_constants() -> None:
    bound, _ = supremum(30_000)
    assert bound == pytest.approx(7.27, abs=0.005)
    assert pytest.approx(3.16, abs=0.005) == SLIDES_BOUND
    assert "7.27" in (optim.Adam.__doc__ or "")


@given(
    gradients=st.lists(
        st.floats(-1e6, 1e6).filter(lambda g: g == 0 or abs(g) > 1e-6), min_size=1, max_size=40
    )
)
def test_no_sequence_exceeds_the_supremum(gradients: list[float]) -> None:
    rule = optim.Adam(lr=0.01, eps=0.0)
    for t, step in enumerate(steps_of(rule, gradients), start=1):
        assert abs(step) <= 0.01 * supremum(t)[0] * (1 + 1e-9)


@given(
    gradients=st.lists(
        st.floats(-1e6, 1e6).filter(lambda g: g == 0 or abs(g) > 1e-6), min_size=1, max_size=40
    ),
    beta1=st.sampled_from([0.0, 0.5, 0.9]),
    beta2=st.sampled_from([0.95, 0.999]),
)
def test_adamax_steps_at_most_its_bound(gradients: list[float], beta1: float, beta2: float) -> None:
    """With beta1 < beta2 every |g_i| is at most u beta2^-(t-i), so |m^| <= u sum a_i beta2^-(t-i) =: u K_t.

    K_t is the constant that can be proven; it is 1 at t = 1 and for beta1 = 0, and tends to
    (1 - beta1)/(1 - beta1/beta2), 1.009 at the default betas. The slides' lr itself is exceeded by that much.
    """
    rule = optim.AdaMax(lr=0.01, beta1=beta1, beta2=beta2)
    for t, step in enumerate(steps_of(rule, gradients), start=1):
        i = np.arange(1, t + 1)
        weights = (1 - beta1) * beta1 ** (t - i.astype(float)) / (1 - beta1**t)
        constant = float(np.sum(weights * beta2 ** -(t - i.astype(float))))
        assert abs(step) <= 0.01 * constant * (1 + 1e-9)
        assert rule.step_bound(t) == pytest.approx(0.01 * constant, rel=1e-9)


def test_adamaxs_constant_is_reached_and_close_to_one() -> None:
    t = 500
    rule = optim.AdaMax(lr=1.0)
    worst = abs(steps_of(rule, [0.999**-(i) for i in range(t, 0, -1)][::1])[-1])
    assert worst == pytest.approx(rule.step_bound(t) or 0.0, rel=1e-6)
    assert 1.0 < worst < 1.01


def test_beta2_of_one_is_the_slides_sgd() -> None:
    """M = mu M - eta g; W += M, with mu and eta of slide 17."""
    lr, b1, eps = 1e-3, 0.9, 1e-4
    gradients = np.random.default_rng(0).normal(size=(200, 10))
    w, m = np.zeros(10), np.zeros(10)
    for t, g in enumerate(gradients, start=1):
        mu = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t)
        eta = lr * (1 - b1) / ((1 - b1**t) * math.sqrt(eps))
        m = mu * m - eta * g
        w = w + m
    rule = optim.Adam(lr=lr, beta1=b1, beta2=1.0, eps=eps)
    np.testing.assert_allclose(path(rule, gradients), w, rtol=1e-11)


def test_beta1_of_zero_and_beta2_near_one_approaches_adagrad() -> None:
    """v^ -> (1/t) sum g^2, so with rate lr t^-1/2 Adam steps lr g/sqrt(sum g^2)."""
    gradients = np.random.default_rng(0).normal(size=(100, 10))
    target = path(optim.AdaGrad(lr=0.1), gradients)
    errors = []
    for gap in (1e-3, 1e-5, 1e-7):
        rule = optim.Adam(lr=0.1, beta1=0.0, beta2=1 - gap, eps=0.0, lr_schedule="inverse_sqrt")
        errors.append(float(np.abs(path(rule, gradients) - target).max()))
    assert errors[0] < 0.05
    assert errors[1] < 0.02 * errors[0]
    assert errors[2] < 0.02 * errors[1]


def test_lp_of_two_is_adam_with_beta2_squared() -> None:
    gradients = np.random.default_rng(0).normal(size=(200, 10))
    lp = optim.LpAdam(lr=0.01, p=2, beta2=0.99, eps=1e-6)
    adam = optim.Adam(lr=0.01, beta2=0.99**2, eps=1e-6)
    np.testing.assert_allclose(path(lp, gradients), path(adam, gradients), rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_large_p_is_within_one_percent_of_adamax(dtype: torch.dtype) -> None:
    """After the first steps: at t = 1 they agree exactly, and p = 1000 does so within 1 % all along."""
    gradients = np.random.default_rng(0).normal(size=(200, 10))
    lp = path(optim.LpAdam(lr=0.01, p=1000, beta2=0.999), gradients, dtype)
    limit = path(optim.AdaMax(lr=0.01, beta2=0.999), gradients, dtype)
    assert np.linalg.norm(lp - limit) <= 0.01 * np.linalg.norm(limit)


@pytest.mark.parametrize(
    "rule", [optim.Adam(), optim.Adam(beta1_decay=0.9), optim.AdaMax(), optim.LpAdam(p=3)]
)
def test_the_corrected_first_moment_of_a_constant_gradient_is_that_gradient(rule: Any) -> None:
    g = torch.tensor([3.0, -0.5, 1e-9], dtype=torch.float64)
    w = torch.zeros(3, dtype=torch.float64)
    slots = rule.init(w)
    product = 1.0
    for t in range(1, 301):
        rule.step_(w, g, slots, t)
        product *= rule.beta1 * getattr(rule, "beta1_decay", 1.0) ** (t - 1)
        torch.testing.assert_close(slots["m"] / (1 - product), g, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(
    "rule", [optim.AdaGrad(), optim.RMSProp(), optim.NesterovRMSProp(), optim.LpAdam(p=3), optim.AdaMax()]
)
def test_a_coordinate_that_never_saw_a_gradient_never_moves(rule: optim.Rule) -> None:
    gradients = np.random.default_rng(0).normal(size=(50, 4)) * np.array([1.0, 0.0, 1.0, 0.0])
    moved = path(rule, gradients)
    assert moved[[1, 3]].tolist() == [0.0, 0.0]
    assert (moved[[0, 2]] != 0).all()
