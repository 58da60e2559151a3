"""Rows that get gradients now and then end where zeros sent densely would have put them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adamserve import optim
from adamserve.optim import rows
from adamserve.optim.engine import apply
from adamserve.optim.rows import Rows
from adamserve.values import Array
from tests.optim.oracle import oracle
from tests.optim.rules import RULES_UNDER_TEST

SLIDES: list[optim.Rule] = [
    optim.SGD(),
    optim.SGD(momentum=0.99, lr=1e-3),
    optim.Nesterov(),
    optim.AdaGrad(),
    optim.RMSProp(),
    optim.NesterovRMSProp(),
    optim.Adam(),
    optim.LpAdam(),
    optim.AdaMax(),
]
TORCH: list[optim.Rule] = [
    optim.TorchSGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    optim.TorchSGD(lr=0.01, momentum=0.9, dampening=0.5),
    optim.TorchRMSprop(lr=0.01, momentum=0.9, centered=True),
    optim.TorchRMSprop(lr=0.01),
]
ODD: list[optim.Rule] = [
    optim.Adam(lr=0.01, beta1=0.9, beta2=0.5),  # moves grow while v decays faster than m
    optim.AdaMax(lr=0.01, beta1=0.99, beta2=0.9),
    optim.SGD(lr=0.1, momentum=0.9, weight_decay=15.0),  # w changes its sign at every update
    optim.Adam(lr=0.01, weight_decay=100.0),  # w is 0 after one update
    optim.Adam(lr=0.01, beta2=0.0),
    optim.Adam(lr=0.01, beta1=0.3, weight_decay=0.01),  # at rest after some 20 updates
]
Rates = Callable[[int], float | None]


def close(found: Array, expected: Array, size: float) -> None:
    """Within 1e-5 of each element, or within 5e-7 of the size that numbers had on the way: an element near 0 is a
    difference of such numbers, each rounded at every update."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-7 * size + 1e-37)


def size_of(w: torch.Tensor) -> float:
    return float(w.double().square().mean().sqrt()) if w.numel() else 0.0


class Twin:
    """A table updated by rows, exactly and lazily, and its copy updated densely."""

    def __init__(self, rule: optim.Rule, w: torch.Tensor) -> None:
        self.rule = rule
        self.dense, self.exact, self.lazy = (
            {"w": w.clone(), **{name: torch.zeros_like(w) for name in rule.slot_names}} for _ in range(3)
        )
        self.rows = Rows(rule, self.exact, 0)
        self.lazy_rows = Rows(rule, self.lazy, 0, exact=False)
        self.t = 0
        self.size = size_of(w)

    def push(self, index: Array, values: torch.Tensor, lr: float | None = None, scale: float = 1.0) -> None:
        self.t += 1
        g = torch.zeros(self.dense["w"].shape, dtype=values.dtype)
        g[torch.from_numpy(index)] = values
        slots = {name: self.dense[name] for name in self.rule.slot_names}
        self.rule.step_(self.dense["w"], g, slots, self.t, lr=lr, lr_scale=scale)
        self.rows.step_(index, values, lr=lr, lr_scale=scale)
        self.lazy_rows.step_(index, values, lr=lr, lr_scale=scale)

    def check(self) -> None:
        self.rows.catch_up()
        for name, expected in self.dense.items():
            size = size_of(expected) if name != "w" else max(self.size, size_of(expected))
            close(self.exact[name].numpy(), expected.numpy(), size)


def zipf(rng: np.random.Generator, total: int, draws: int) -> Array:
    """Distinct rows of `draws` from a Zipf distribution of exponent 1."""
    weights = np.cumsum(1.0 / np.arange(1, total + 1))
    return np.unique(np.searchsorted(weights, rng.random(draws) * weights[-1]))


def test_lazy_is_another_algorithm_and_exact_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    """50,000 rows of 8, 2,000 pushes: every rule against the dense run, and the dense run against float64."""
    watched = np.array([0, 1, 2, 10, 100, 1000, 20_000, 40_001, 40_002, 49_999])
    with capsys.disabled():
        print()
    for rule in SLIDES:
        rng = np.random.default_rng(1)
        start = torch.from_numpy(rng.standard_normal((50_000, 8)).astype(np.float32))
        twin, step = Twin(rule, start), oracle(rule)
        w64 = start.numpy()[watched].astype(np.float64)
        for t in range(1, 2001):
            index = zipf(rng, 40_000, 30)
            if t in (50, 1951):
                index = np.r_[index, 40_001, 40_002]  # a gap of 1,900 updates
            values = rng.standard_normal((len(index), 8)).astype(np.float32)
            twin.push(index, torch.from_numpy(values))
            g64 = np.zeros_like(w64)
            at = np.searchsorted(index, watched)
            hit = (at < len(index)) & (index[np.minimum(at, len(index) - 1)] == watched)
            g64[hit] = values[at[hit]]
            w64 = step(w64, g64, t)
        twin.check()
        size = float(np.abs(w64).max())

        def off(w: torch.Tensor, than: Array, size: float = size) -> float:
            return float(np.abs(w.numpy() - than).max()) / size

        dense = twin.dense["w"].numpy()
        lazy, exact = off(twin.lazy["w"], dense), off(twin.exact["w"], dense)
        rounding = off(twin.dense["w"][watched], w64)
        with capsys.disabled():
            print(
                f"{type(rule).__name__:16} off dense float32: exact {exact:.1e}, lazy {lazy:.1e};"
                f" dense float32 off float64: {rounding:.1e}"
            )
        assert off(twin.exact["w"][watched], w64) <= 2 * rounding + 1e-6
        if not isinstance(rule, optim.AdaGrad):  # whose zero gradients change nothing
            assert lazy > 100 * exact


@pytest.fixture(params=["compiled", "eager"])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "eager":
        monkeypatch.setenv("ADAMSERVE_KERNELS", "eager")
    apply.forget()
    yield request.param
    monkeypatch.undo()
    apply.forget()


@pytest.mark.parametrize(
    "rates",
    [lambda t: None, lambda t: 0.01 * (t % 7), lambda t: 0.01 * t / 300],
    ids=["steady", "saw", "growing"],
)
@pytest.mark.parametrize("rule", [*RULES_UNDER_TEST, *TORCH, *ODD], ids=str)
def test_every_rule_and_option(rule: optim.Rule, rates: Rates) -> None:
    rng = np.random.default_rng(3)
    twin = Twin(rule, torch.from_numpy(rng.standard_normal((300, 5)).astype(np.float32)))
    for t in range(1, 301):
        index = zipf(rng, 250, 6)
        twin.push(index, torch.from_numpy(rng.standard_normal((len(index), 5)).astype(np.float32)), rates(t))
        if t % 90 == 0:
            twin.check()
    twin.check()


@pytest.mark.parametrize("rule", [*SLIDES, *TORCH, *ODD], ids=str)
def test_without_a_compiler(rule: optim.Rule, executor: str) -> None:
    """The same by torch's operations, of which an accelerator's kernels are one kind."""
    rng = np.random.default_rng(3)
    twin = Twin(rule, torch.from_numpy(rng.standard_normal((40, 3)).astype(np.float32)))
    for t in range(1, 61):
        index = zipf(rng, 30, 3)
        twin.push(
            index, torch.from_numpy(rng.standard_normal((len(index), 3)).astype(np.float32)), t % 5 / 50
        )
    twin.check()


@settings(max_examples=150)
@given(data=st.data())
def test_any_small_history(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    options: dict[str, Any] = {
        "lr_schedule": data.draw(st.sampled_from(["constant", "inverse_sqrt"])),
        "weight_decay": data.draw(st.sampled_from([0.0, 0.1])),
    }
    rule = data.draw(
        st.sampled_from(
            [
                optim.SGD(momentum=0.0, **options),
                optim.SGD(momentum=0.99, **options),
                optim.Nesterov(momentum=0.99, **options),
                optim.NesterovRMSProp(**options),
                optim.RMSProp(**options),
                optim.Adam(lr=0.1, **options),
                optim.Adam(amsgrad=True, **options),
                optim.Adam(beta1=0.0, **options),
                optim.Adam(beta2=1.0, **options),
                optim.LpAdam(**options),
                optim.AdaMax(**options),
            ]
        )
    )
    numbers = st.floats(-10, 10, width=32)
    width, total = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    start = data.draw(st.lists(numbers, min_size=total * width, max_size=total * width))
    twin = Twin(rule, torch.tensor(start, dtype=dtype).reshape(total, width))
    for _ in range(data.draw(st.integers(1, 12))):
        index = np.array(sorted(data.draw(st.sets(st.integers(0, total - 1)))), np.int64)
        flat = data.draw(st.lists(numbers, min_size=len(index) * width, max_size=len(index) * width))
        values = torch.tensor(flat, dtype=dtype).reshape(len(index), width)
        lr = data.draw(st.sampled_from([None, 0.0, 0.5]))
        twin.push(index, values, lr, data.draw(st.sampled_from([1.0, 0.25])))
        for _ in range(data.draw(st.integers(0, 40)) if data.draw(st.booleans()) else 0):
            twin.push(np.empty(0, np.int64), values[:0])
        if data.draw(st.booleans()):
            twin.rows.catch_up(np.array(sorted(data.draw(st.sets(st.integers(0, total - 1)))), np.int64))
    twin.check()


def test_double_precision_is_kept() -> None:
    """Gaps of up to 900 updates, far beyond the horizon: within some hundred roundings of float64."""
    rng = np.random.default_rng(5)
    for rule in (optim.Adam(lr=0.01), optim.SGD(momentum=0.95, weight_decay=0.01), optim.AdaMax(lr=0.01)):
        twin = Twin(rule, torch.from_numpy(rng.standard_normal((6, 3))))
        for t in range(1000):
            index = np.array([0, 1 + t // 2]) if t < 10 else np.array([0])
            twin.push(index, torch.from_numpy(rng.standard_normal((len(index), 3))), 0.01 + 1e-5 * t)
        twin.rows.catch_up()
        for name, expected in twin.dense.items():
            torch.testing.assert_close(twin.exact[name], expected, rtol=1e-12, atol=1e-13)


def test_rates_of_any_size() -> None:
    """From the smallest number there is to 1, and 0 between: no horizon is out of range."""
    for rates in ([5e-324, 1.0], [1e-300, 0.0, 1e-3], [1.0, 1e-308]):
        twin = Twin(optim.Adam(), torch.ones(3, 2))
        for t in range(30):
            index = np.array([t % 3]) if t < 3 or t == 29 else np.empty(0, np.int64)
            twin.push(index, torch.ones(len(index), 2), rates[t % len(rates)])
        twin.check()


def test_a_steady_rate_is_one_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the history grows with changes of the constants, not with updates; when it is full, rows catch up."""
    w = torch.ones(4, 2)
    steady = Rows(optim.SGD(), {"w": w, "velocity": torch.zeros_like(w)}, 0)
    for _ in range(1000):
        steady.step_(np.array([1]), torch.ones(1, 2), lr=None, lr_scale=1.0)
    assert steady._history.phases == 1
    monkeypatch.setattr(rows, "MAX_PHASES", 8)
    rng = np.random.default_rng(0)
    twin = Twin(optim.Adam(lr=0.01), torch.from_numpy(rng.standard_normal((20, 3)).astype(np.float32)))
    for t in range(100):
        index = np.array([t % 20])
        twin.push(index, torch.from_numpy(rng.standard_normal((1, 3)).astype(np.float32)), 0.01 + t * 1e-4)
        assert twin.rows._history.phases <= 8
    twin.check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows(dtype: torch.dtype, executor: str) -> None:
    rng = np.random.default_rng(2)
    twin = Twin(optim.Adam(), torch.from_numpy(rng.standard_normal((30, 4)).astype(np.float32)))
    for t in range(40):
        index = np.array([t % 7, 7 + t % 11])
        twin.push(index, torch.from_numpy(rng.standard_normal((2, 4))).to(dtype))
    twin.check()
