"""What every rule promises, whatever its equation."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adamserve import optim
from adamserve.errors import InvalidArgument
from adamserve.optim.engine import kernels, threads
from tests.optim.rules import RULES_UNDER_TEST

DTYPES = [torch.float32, torch.float64]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e15, 1e-38, 1e-40, 1e-45, 3e18, 1e-20, 0.1]
"""Gradients where rounding, underflow and subnormal numbers are met."""

every_rule = pytest.mark.parametrize("rule", RULES_UNDER_TEST, ids=repr)


def gradients(n: int, steps: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    drawn = [np.where(rng.random(n) < 0.3, rng.choice(SPECIAL, n), rng.normal(size=n)) for _ in range(steps)]
    return [torch.tensor(g).to(dtype) for g in drawn]


def run(
    rule: optim.Rule, given: list[torch.Tensor], dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Parameters and slots after these gradients."""
    w = torch.linspace(-1, 1, given[0].numel(), dtype=dtype).reshape(given[0].shape)
    slots = rule.init(w)
    for t, g in enumerate(given, start=1):
        rule.step_(w, g, slots, t)
    return {"w": w, **slots}


def bits(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in state.items()}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No compiled kernels, until the end of the test."""
    monkeypatch.setenv("ADAMSERVE_KERNELS", "eager")
    kernels.forget()
    yield
    monkeypatch.undo()
    kernels.forget()


@every_rule
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 3, 4, 5)], ids=str)
def test_it_keeps_shape_and_dtype(rule: optim.Rule, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    w = torch.ones(shape, dtype=dtype)
    slots = rule.init(w)
    assert tuple(slots) == rule.slot_names
    rule.step_(w, torch.full(shape, 0.5, dtype=dtype), slots, 1)
    for tensor in (w, rule.lookahead(w, slots), *slots.values()):
        assert (tensor.shape, tensor.dtype) == (torch.Size(shape), dtype)
        assert bool(torch.isfinite(tensor).all())


@every_rule
def test_a_zero_gradient_on_fresh_slots_leaves_w_alone(rule: optim.Rule) -> None:
    w = torch.tensor([1.0, -2.0])
    rule.step_(w, torch.zeros(2), rule.init(w), 1)
    if not (rule.weight_decay or rule.l2 or rule.box):
        assert w.tolist() == [1.0, -2.0]
    else:
        assert (w.abs() < torch.tensor([1.0, 2.0])).all()


@every_rule
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_and_eager_agree_bit_for_bit(
    rule: optim.Rule, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    n = 70_001  # more than one block and one thread, and no multiple of anything
    given = gradients(n, 4, dtype)
    compiled = bits(run(rule, given, dtype))
    assert optim.prepare(rule, dtype).executor == "compiled"
    request.getfixturevalue("eager")
    assert optim.prepare(rule, dtype).executor == "eager"
    assert bits(run(rule, given, dtype)) == compiled


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_the_step_of_a_slice_is_the_slice_of_the_step(dtype: torch.dtype, data: st.DataObject) -> None:
    rule = data.draw(st.sampled_from(RULES_UNDER_TEST))
    n = data.draw(st.integers(1, 300))
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=6))})
    given = gradients(n, 3, dtype)
    whole = run(rule, given, dtype)
    w = torch.linspace(-1, 1, n, dtype=dtype)
    slots = rule.init(w)
    for a, b in pairwise(cuts):
        for t, g in enumerate(given, start=1):
            rule.step_(w[a:b], g[a:b], {name: slot[a:b] for name, slot in slots.items()}, t)
    assert bits({"w": w, **slots}) == bits(whole)


@every_rule
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_gradient_is_read_as_the_same_number(rule: optim.Rule, half: torch.dtype) -> None:
    given = [g.clamp(-6e4, 6e4).to(half) for g in gradients(1001, 4)]
    assert bits(run(rule, given)) == bits(run(rule, [g.float() for g in given]))


@every_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("executor", ["compiled", "eager"])
def test_a_copy_is_the_next_gradients_point_rounded(
    rule: optim.Rule, executor: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    if executor == "eager":
        request.getfixturevalue("eager")
    assert optim.prepare(rule, torch.float32, copy=dtype).executor == executor
    given = gradients(70_001, 3)
    w = torch.linspace(-1, 1, 70_001)
    slots, copy = rule.init(w), torch.empty(70_001, dtype=dtype)
    for t, g in enumerate(given, start=1):
        rule.step_(w, g, slots, t, copy=copy)
    assert bits({"w": w, **slots}) == bits(run(rule, given))
    assert copy.view(torch.int16).equal(rule.lookahead(w, slots).to(dtype).view(torch.int16))


def test_a_bfloat16_copy_rounds_every_kind_of_number() -> None:
    """Ties to even, up to infinity, NaN of any bits; SGD at rate 1 from zeros stores -g."""
    words = [0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x3F80_7FFF, 0x7F7F_8000, 0x7F7F_7FFF, 0x7F80_0000, 0x7F80_0001,
             0x7FFF_FFFF, 0x0080_0000, 0x8000_0000, 0x4049_0FDB]  # fmt: skip
    w = torch.zeros(len(words))
    copy = torch.empty(len(words), dtype=torch.bfloat16)
    g = torch.from_numpy(np.array(words, np.uint32).view(np.float32))
    optim.SGD(lr=1.0, momentum=0.0).step_(w, -g, {}, 1, copy=copy)
    got = copy.view(torch.int16).numpy().view(np.uint16).tolist()
    assert got == [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0x7F7F, 0x7F80, 0x7FC0,
                   0x7FC0, 0x0080, 0x0000, 0x4049]  # fmt: skip


@every_rule
def test_what_is_stored_is_never_subnormal(rule: optim.Rule) -> None:
    w = torch.full((64,), 1e-37)
    slots = rule.init(w)
    rng = np.random.default_rng(0)
    for t in range(1, 400):
        g = torch.tensor(rng.choice([0.0, 1e-38, 1e-40, -1e-36], 64), dtype=torch.float32)
        rule.step_(w, g, slots, t)
        for tensor in (w, *slots.values()):
            assert not ((tensor != 0) & (tensor.abs() < torch.finfo(torch.float32).tiny)).any()


@every_rule
def test_it_resumes_exactly_from_copied_slots(rule: optim.Rule) -> None:
    given = gradients(99, 8)
    whole = run(rule, given)
    half = run(rule, given[:4])
    w = half.pop("w").clone()
    slots = {name: slot.clone() for name, slot in half.items()}
    again = optim.from_dict(optim.to_dict(rule))
    for t, g in enumerate(given[4:], start=5):
        again.step_(w, g, slots, t)
    assert bits({"w": w, **slots}) == bits(whole)


@every_rule
def test_strides_do_not_matter(rule: optim.Rule) -> None:
    given = [g.reshape(6, 8) for g in gradients(48, 3)]
    plain = run(rule, given)
    w = torch.linspace(-1, 1, 48).reshape(6, 8).T.contiguous().T
    slots = {name: slot.T.contiguous().T for name, slot in rule.init(w).items()}
    for t, g in enumerate(given, start=1):
        rule.step_(w, g.T.contiguous().T, slots, t)
    assert bits({"w": w, **slots}) == bits(plain)


@every_rule
def test_the_number_of_threads_does_not_matter(rule: optim.Rule) -> None:
    before = threads._count
    given = gradients(200_003, 2)
    try:
        results = []
        for count in (1, 3):
            optim.set_threads(count)
            results.append(bits(run(rule, given)))
    finally:
        optim.set_threads(before)
    assert results[0] == results[1]


@every_rule
def test_it_finds_the_minimum_of_a_parabola(rule: optim.Rule) -> None:
    w = torch.tensor([0.5, -0.7], dtype=torch.float64)
    slots = rule.init(w)
    for t in range(1, 5001):
        falling = None if rule.lr_schedule == "inverse_sqrt" else rule.lr / (1 + t / 100)
        rule.step_(w, 2 * rule.lookahead(w, slots), slots, t, lr=falling)
    assert float(w.abs().max()) < 0.1


@every_rule
def test_a_rate_for_one_push_takes_the_place_of_the_rules(rule: optim.Rule) -> None:
    [g] = gradients(20, 1)
    ours = torch.ones(20)
    rule.step_(ours, g, rule.init(ours), 1, lr=0.5 * rule.lr)
    scaled = torch.ones(20)
    rule.step_(scaled, g, rule.init(scaled), 1, lr_scale=0.5)
    torch.testing.assert_close(ours, scaled, rtol=1e-6, atol=0.0)
    assert ours.numpy().tobytes() != torch.ones(20).numpy().tobytes()


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("another shape", {"g": torch.ones(4)}, "g"),
    ("integer gradient", {"g": torch.ones(3, dtype=torch.int32)}, "g"),
    ("double gradient", {"g": torch.ones(3, dtype=torch.float64)}, "g"),
    ("t of 0", {"t": 0}, "t"),
    ("t of 1.5", {"t": 1.5}, "t"),
    ("NaN rate", {"lr": float("nan")}, "lr"),
    ("negative rate", {"lr": -1.0}, "lr"),
    ("infinite scale", {"lr_scale": float("inf")}, "lr_scale"),
    ("copy of another shape", {"copy": torch.ones(4, dtype=torch.bfloat16)}, "copy"),
    ("copy of another dtype", {"copy": torch.ones(3, dtype=torch.float16)}, "copy"),
    ("copy that shares memory", {"copy": torch.ones(1, dtype=torch.bfloat16).expand(3)}, "copy"),
    ("missing slot", {"slots": {"m": torch.zeros(3)}}, "slots"),
]


@pytest.mark.parametrize(("arguments", "field"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_argument_is_named_and_nothing_changes(arguments: dict[str, Any], field: str) -> None:
    rule = optim.Adam()
    w = torch.ones(3)
    call: dict[str, Any] = {"g": torch.ones(3), "slots": rule.init(w), "t": 1, **arguments}
    options = {name: call[name] for name in ("lr", "lr_scale", "copy") if name in call}
    with pytest.raises(InvalidArgument) as caught:
        rule.step_(w, call["g"], call["slots"], call["t"], **options)
    assert caught.value.field.startswith(field)
    assert w.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("name", "constants", "field"),
    [
        ("adam", {"lr": -1.0}, "lr"),
        ("adam", {"lr": float("nan")}, "lr"),
        ("adam", {"lr": float("inf")}, "lr"),
        ("adam", {"beta1": 1.0}, "beta1"),
        ("adam", {"beta2": 1.5}, "beta2"),
        ("adam", {"beta2": 1.0, "eps": 0.0}, "eps"),
        ("adam", {"eps": -1e-8}, "eps"),
        ("adam", {"beta1_decay": 0.0}, "beta1_decay"),
        ("adam", {"amsgrad": "yes"}, "amsgrad"),
        ("adam", {"lr_schedule": "cosine"}, "lr_schedule"),
        ("adam", {"lr_decay": -1.0}, "lr_decay"),
        ("adam", {"weight_decay": float("nan")}, "weight_decay"),
        ("adam", {"l2": -1}, "l2"),
        ("adam", {"box": (1.0, 1.0)}, "box"),
        ("adam", {"box": (0.0, float("nan"))}, "box"),
        ("adam", {"box": (0.0, float("inf"))}, "box"),
        ("adam", {"box": (0.0,)}, "box"),
        ("adam", {"box": "01"}, "box"),
        ("adam", {"box": 1}, "box"),
        ("sgd", {"momentum": 1.0}, "momentum"),
        ("nesterov", {"momentum": -0.1}, "momentum"),
        ("rmsprop", {"decay": 1.0}, "decay"),
        ("lpadam", {"p": 0.5}, "p"),
        ("lpadam", {"p": float("inf")}, "p"),
        ("adamax", {"beta2": 1.0}, "beta2"),
        ("adam", {"beta3": 0.9}, "beta3"),
    ],
)
def test_a_bad_constant_is_named(name: str, constants: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        optim.by_name(name, **constants)
    assert caught.value.field == field


@every_rule
def test_a_rule_survives_its_dictionary(rule: optim.Rule) -> None:
    assert optim.from_dict(json.loads(json.dumps(optim.to_dict(rule)))) == rule


@every_rule
def test_a_box_holds_w_and_leaves_the_slots_alone(rule: optim.Rule) -> None:
    """Projected after every update; where no wall is touched nothing differs, to the bit."""
    rng = np.random.default_rng(5)
    start = torch.from_numpy(rng.uniform(0.1, 0.2, 50))
    boxed, free = (dataclasses.replace(rule, box=box) for box in ((0.1, 0.2), None))
    w, slots, t = start.clone(), boxed.init(start), 0
    touched = 0
    for t in range(1, 30):
        g = torch.from_numpy(rng.standard_normal(50))
        alone, alone_slots = w.clone(), {name: slot.clone() for name, slot in slots.items()}
        free.step_(alone, g, alone_slots, t)
        boxed.step_(w, g, slots, t)
        assert torch.equal(w, alone.clamp(0.1, 0.2))
        assert all(torch.equal(slots[name], alone_slots[name]) for name in slots)
        touched += int((w != alone).sum())
    assert touched > 0


def test_all_finite_sees_every_element() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for n in (0, 1, 7, 100_003):
            x = torch.zeros(n, dtype=dtype)
            assert optim.all_finite(x)
            for position in {0, n // 2, n - 1} if n else ():
                for bad in (float("nan"), float("inf"), float("-inf")):
                    x[position] = bad
                    assert not optim.all_finite(x)
                x[position] = torch.finfo(dtype).max
                assert optim.all_finite(x)


CHILD = """
import hashlib, sys, torch
from adamserve import optim
rule = optim.LpAdam(p=3.5)
info = optim.prepare(rule, torch.float32)
w = torch.linspace(-1, 1, 1000)
slots = rule.init(w)
for t in range(1, 6):
    rule.step_(w, torch.sin(7 * w), slots, t)
print(info.executor, info.cached, hashlib.sha256(w.numpy().tobytes()).hexdigest(), bool(info.reason))
"""


def child(cache: Path, **environment: str) -> list[str]:
    """Step in a fresh process; returns executor, cached, a digest of the result, and whether something was lost."""
    env = {**os.environ, "ADAMSERVE_CACHE_DIR": str(cache), **environment}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout.split()


def test_kernels_are_cached_and_a_machine_without_a_compiler_computes_the_same(tmp_path: Path) -> None:
    cold = child(tmp_path / "a")
    assert cold[:2] == ["compiled", "False"]
    warm = child(tmp_path / "a")
    assert warm[:2] == ["compiled", "True"]
    assert child(tmp_path / "a", PATH="/nowhere", CC="")[0] in ("compiled", "eager")
    for library in (tmp_path / "a").rglob("*.so"):
        library.write_bytes(b"not a library")
    mended = child(tmp_path / "a")
    assert mended[0] == "compiled"
    bare = child(tmp_path / "b", PATH="/nowhere", CC="")
    assert bare[0] == "eager"
    assert bare[3] == "True", "what was lost is said"
    assert cold[2] == warm[2] == mended[2] == bare[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_rule
def test_cuda_agrees_with_the_cpu_bit_for_bit(rule: optim.Rule) -> None:
    given = gradients(70_001, 4)
    cpu = bits(run(rule, given))
    w = torch.linspace(-1, 1, 70_001).cuda()
    slots = rule.init(w)
    for t, g in enumerate(given, start=1):
        rule.step_(w, g.cuda(), slots, t)
    assert bits({"w": w.cpu(), **{name: slot.cpu() for name, slot in slots.items()}}) == cpu
