"""Every rule against an independent float64 oracle, and against torch.optim where torch has it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from adamserve import optim
from tests.optim.oracle import oracle
from tests.optim.rules import RULES_UNDER_TEST

STEPS = 1000

STREAMS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "sparse": lambda rng, n: rng.normal(size=n) * (rng.random(n) < 0.05),
    "tiny": lambda rng, n: 1e-30 * rng.normal(size=n),
    "huge": lambda rng, n: 1e15 * rng.normal(size=n),
    "mixed": lambda rng, n: rng.choice([0.0, 1e-30, 1.0, 1e15], size=n) * rng.normal(size=n),
}
"""Zero, tiny and huge gradients: each alone (so that a coordinate sees nothing else), and mixed."""

ERROR = {torch.float64: 1e-9, torch.float32: 2e-3}
"""Largest norm(w - oracle)/norm(oracle's way from the start) after 1,000 steps.

A step rounds w and each slot once or a few times, by half a unit in the last place each: after 1,000 steps
that is at most some 1,000 u of w. The way travelled may be 100 times shorter than w is large (steps of 0.001
to 0.1 that partly cancel), and the decay constants themselves are rounded (1 - beta2 = 0.001 to 6e-8/0.001 in
float32). So about 1e3 * 1e2 * 1e-16 = 1e-11 and 1e3 * 1e2 * 6e-8 / sqrt(1e3) = 2e-4 are expected.
"""


def stream(name: str, n: int) -> list[Any]:
    """Gradients that float32 and float64 hold exactly, so that rounding them is no part of the comparison."""
    rng = np.random.default_rng(42)
    return [STREAMS[name](rng, n).astype(np.float32).astype(np.float64) for _ in range(STEPS)]


def descend(rule: optim.Rule, gradients: list[Any], start: Any, dtype: torch.dtype) -> Any:
    w = torch.tensor(start, dtype=dtype)
    slots = rule.init(w)
    for t, g in enumerate(gradients, start=1):
        rule.step_(w, torch.tensor(g, dtype=dtype), slots, t)
    return w.numpy().astype(np.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("rule", RULES_UNDER_TEST, ids=repr)
def test_a_thousand_steps_agree_with_the_oracle(rule: optim.Rule, name: str, dtype: torch.dtype) -> None:
    n = 40
    start = np.random.default_rng(1).normal(size=n).astype(np.float32).astype(np.float64)
    gradients = stream(name, n)
    update = oracle(rule)
    expected = start
    for t, g in enumerate(gradients, start=1):
        expected = update(expected, g, t)
    found = descend(rule, gradients, start, dtype)
    assert np.isfinite(found).all()
    way = np.linalg.norm(expected - start)
    error = np.linalg.norm(found - expected)
    # Where nothing can move (tiny gradients under SGD or behind eps), w must stay to the last bit or two.
    floor = np.finfo(str(dtype).removeprefix("torch.")).eps * np.linalg.norm(expected)
    assert error <= ERROR[dtype] * way + 4 * floor * np.sqrt(STEPS)


@pytest.mark.parametrize(
    "rule",
    [
        optim.AdaGrad(lr=0.1),
        optim.RMSProp(lr=0.1),
        optim.NesterovRMSProp(lr=0.1),
        optim.LpAdam(lr=0.1, p=3),
        optim.AdaMax(lr=0.1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1.0, 1e15])
def test_rules_without_eps_step_alike_at_every_scale(rule: optim.Rule, size: float) -> None:
    """The oracle's first step of a coordinate is the same whatever the gradient's size; so must float32's be."""
    g = np.float32(size)
    expected = oracle(rule)(np.zeros(1), np.full(1, float(g)), 1)
    found = descend(rule, [np.full(1, float(g))], np.zeros(1), torch.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(found[0]) > 0.05


TORCH: list[tuple[optim.Rule, Any]] = [
    (optim.SGD(lr=0.1, momentum=0.0), partial(torch.optim.SGD, lr=0.1)),
    (
        optim.SGD(lr=0.1, momentum=0.9, l2=0.1),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    ),
    (optim.Adam(lr=0.01, eps_inside_sqrt=False), partial(torch.optim.Adam, lr=0.01)),
    (
        optim.Adam(lr=0.01, eps_inside_sqrt=False, l2=0.1),
        partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    ),
    (
        optim.Adam(lr=0.01, eps_inside_sqrt=False, amsgrad=True),
        partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    ),
    (
        optim.Adam(lr=0.01, eps_inside_sqrt=False, weight_decay=0.1),
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    ),
    (optim.AdaMax(lr=0.01, eps=1e-8), partial(torch.optim.Adamax, lr=0.01)),
    (optim.AdaGrad(lr=0.1, eps=1e-10, eps_inside_sqrt=False), partial(torch.optim.Adagrad, lr=0.1)),
    (
        optim.RMSProp(lr=0.01, decay=0.99, eps=1e-8, eps_inside_sqrt=False),
        partial(torch.optim.RMSprop, lr=0.01, alpha=0.99),
    ),
]


@pytest.mark.parametrize(("rule", "make"), TORCH, ids=[repr(rule) for rule, _ in TORCH])
def test_two_hundred_steps_agree_with_torch(rule: optim.Rule, make: Any) -> None:
    """In float64; both sides differ by the order of operations only."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=50)
    gradients = [rng.normal(size=50) for _ in range(200)]
    parameter = torch.nn.Parameter(torch.tensor(start))
    theirs = make([parameter])
    for g in gradients:
        parameter.grad = torch.tensor(g)
        theirs.step()
    ours = descend(rule, gradients, start, torch.float64)
    np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_nesterov_agrees_with_torch_at_the_look_ahead_point() -> None:
    """torch calls the look-ahead point the parameter; on a loss whose gradient depends on where it is taken."""
    rule = optim.Nesterov(lr=0.05, momentum=0.9)
    w = torch.linspace(-2, 2, 9, dtype=torch.float64)
    parameter = torch.nn.Parameter(w.clone())
    theirs = torch.optim.SGD([parameter], lr=0.05, momentum=0.9, nesterov=True)
    slots = rule.init(w)
    for t in range(1, 201):
        rule.step_(w, torch.sin(rule.lookahead(w, slots)), slots, t)
        parameter.grad = torch.sin(parameter.detach())
        theirs.step()
    torch.testing.assert_close(rule.lookahead(w, slots), parameter.detach(), rtol=1e-10, atol=1e-12)
