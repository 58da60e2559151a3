"""Values that are assigned, and constants that come with a push: exactly once, in every mode, dense or by rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adamserve import optim
from adamserve.errors import AdamServeError, InvalidArgument, NotFound
from adamserve.shard.consistency import BSP, SSP, Async, Consistency
from adamserve.shard.ledger import Decided
from adamserve.shard.shard import Shard
from adamserve.values import Gradient, Outcome, Push, Receipt, SparseRows, Stamp, TensorSpec
from tests.shard.test_shard import make

TABLE = TensorSpec("table", (6, 3))
TENSORS = [TABLE, TensorSpec("w", (4,)), TensorSpec("d", (2,), "float64")]
W = np.array([5.0, 6.0, 7.0, 8.0], np.float32)
G = np.full(4, 0.5, np.float32)


def send(shard: Shard, seq: int, gradients: Mapping[str, Gradient], **fields: Any) -> Receipt:
    fields.setdefault("pulled", shard.stamp)
    push = replace(Push("a", seq, Stamp(1, 0), gradients), **fields)
    answer = shard.offer(shard.check(push))
    assert isinstance(answer, Decided)
    return answer.receipt


def now(shard: Shard, name: str = "w") -> list[float]:
    values: list[float] = shard.state().arrays["w"][name].tolist()
    return values


@pytest.mark.parametrize("mode", [Async(), Async(max_staleness=0), SSP(bound=0), BSP()], ids=str)
def test_values_are_assigned_at_once_and_once(mode: Consistency) -> None:
    """Also where a push would wait, or be too old: it is no step of the pusher."""
    shard = make(tensors=TENSORS, consistency=mode, pushers=("a", "b"))
    first = send(shard, 1, {"w": W}, assign="w")
    again = send(shard, 1, {"w": W * 2}, assign="w")
    assert (first.outcome, first.stamp) == (Outcome.APPLIED, Stamp(1, 1))
    assert again == replace(first, outcome=Outcome.DUPLICATE)
    assert now(shard) == W.tolist()
    assert shard.state().pushers["a"].steps == 0
    old = send(shard, 2, {"w": W * 3}, assign="w", pulled=Stamp(1, 0))
    assert (old.outcome, old.staleness) == (Outcome.APPLIED, 1)


def test_a_round_goes_on_over_an_assignment() -> None:
    shard = make(tensors=TENSORS, consistency=BSP(), pushers=("a", "b"), rule=optim.SGD(lr=1.0, momentum=0.0))
    pulled = shard.stamp
    assert not isinstance(shard.offer(shard.check(Push("b", 1, pulled, {"w": G}))), Decided)
    send(shard, 1, {"w": W}, assign="w", pulled=pulled)
    assert send(shard, 2, {"w": G}, pulled=pulled).outcome is Outcome.APPLIED
    assert now(shard) == (W - 0.5).tolist()
    late = shard.offer(shard.check(Push("b", 2, pulled, {"w": G})))
    assert isinstance(late, Decided)
    assert late.receipt.outcome is Outcome.STALE, "that round is over"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such slot": ({"assign": "m"}, "no slot 'm'"),
    "another dtype": ({"gradients": {"d": np.zeros(2, np.float32)}}, "values of dtype float32 for a float64"),
    "half precision": ({"gradients": {"w": W.astype(np.float16)}}, "values of dtype float16 for a float32"),
    "another shape": ({"gradients": {"w": W[:3]}}, "shape"),
    "NaN": ({"gradients": {"w": W * np.float32("nan")}}, "NaN"),
    "another tensor": ({"gradients": {"x": W}}, "x"),
    "a row twice": (
        {"gradients": {"table": SparseRows(np.array([1, 1]), np.zeros((2, 3), np.float32))}},
        "a row is assigned twice",
    ),
    "a negative count": ({"updates": {"w": -1}}, r"updates\[w\]: must be at least 0"),
    "a count of another tensor": ({"updates": {"x": 1}}, "x"),
    "a constant of no rule": ({"constants": {"w": {"beta7": 0.1}}}, "beta7: is no constant of SGD"),
    "a constant out of range": ({"constants": {"w": {"momentum": 1.5}}}, "momentum: must be a number in"),
    "a rate out of range": ({"constants": {"w": {"lr": -1.0}}}, "must be finite and at least 0"),
    "a text": ({"constants": {"w": {"lr_schedule": 1.0}}}, "lr_schedule: is no constant"),
}


@pytest.mark.parametrize(("fields", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_named_and_changes_nothing(fields: dict[str, Any], says: str) -> None:
    shard = make(tensors=TENSORS)
    before = now(shard)
    given = {"gradients": {"w": W}, "assign": "w", **fields}
    with pytest.raises(AdamServeError, match=says) as refused:
        send(shard, 1, **given)
    assert isinstance(refused.value, InvalidArgument | NotFound)
    assert (now(shard), shard.stamp) == (before, Stamp(1, 0))


def test_after_a_restore_nothing_of_before_is_assigned() -> None:
    shard = make(tensors=TENSORS, incarnation=2)
    assert send(shard, 1, {"w": W}, assign="w", pulled=Stamp(1, 0)).outcome is Outcome.STALE
    assert now(shard) == [0.0, 1.0, 2.0, 3.0]


def test_slots_and_counts_go_on_as_if_they_had_been_made_here() -> None:
    rule = optim.Adam(lr=0.1)
    one, two = make(tensors=TENSORS, rule=rule), make(tensors=TENSORS, rule=rule)
    for seq in range(1, 6):
        send(one, seq, {"w": G * seq})
    state = one.state()
    send(two, 1, {}, assign="w", updates={"w": 5})
    for seq, slot in enumerate(("w", "m", "v"), start=2):
        send(two, seq, {"w": state.arrays[slot]["w"].copy()}, assign=slot)
    for seq in range(6, 9):
        send(one, seq, {"w": G})
        send(two, seq - 1, {"w": G})
    assert now(one) == now(two)


CONSTANTS = [
    {"lr": 0.3},
    {"lr": 0.1, "beta1": 0.5},
    {"beta2": 0.9},
    {"eps": 1e-3, "weight_decay": 0.1},
    {},
]


def oracle(w: np.ndarray[Any, Any], steps: list[tuple[np.ndarray[Any, Any], dict[str, float]]]) -> Any:
    """Adam with decoupled weight decay in float64, its constants by the step."""
    w, m, v = w.astype(float), np.zeros(w.shape), np.zeros(w.shape)
    for t, (g, own) in enumerate(steps, start=1):
        c = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, **own}
        m = c["beta1"] * m + (1 - c["beta1"]) * g
        v = c["beta2"] * v + (1 - c["beta2"]) * g * g
        w = w - c["lr"] * c["weight_decay"] * w
        hat, root = m / (1 - c["beta1"] ** t), np.sqrt(v / (1 - c["beta2"] ** t) + c["eps"])
        w = w - c["lr"] * hat / root
    return w


@given(st.lists(st.tuples(st.sampled_from(CONSTANTS), st.integers(0, 63)), min_size=1, max_size=12))
def test_constants_are_a_pushs_own(plan: list[tuple[dict[str, float], int]]) -> None:
    """A dense push, and one by rows that leaves some out, against an oracle that knows neither shards nor rows."""
    rule = optim.Adam(lr=0.01)
    dense, rows = make(tensors=TENSORS, rule=rule), make(tensors=TENSORS, rule=rule)
    start = np.array(now(dense, "table")).reshape(6, 3)
    steps = []
    for seq, (own, chosen) in enumerate(plan, start=1):
        g = np.zeros((6, 3), np.float32)
        named = [row for row in range(6) if chosen >> row & 1]
        g[named] = np.float32(0.25) * (seq + np.arange(len(named))[:, None])
        steps.append((g.astype(float), own))
        constants = {"table": own} if own else {}
        send(dense, seq, {"table": g.reshape(-1)}, constants=constants)
        sent = SparseRows(np.array(named, np.int64), g[named])
        send(rows, seq, {"table": sent}, constants=constants)
    expected = oracle(start, steps).reshape(-1)
    np.testing.assert_allclose(now(dense, "table"), expected, rtol=3e-5, atol=3e-5)
    np.testing.assert_allclose(now(rows, "table"), expected, rtol=3e-5, atol=3e-5)


def test_a_constant_that_needs_other_slots_is_refused() -> None:
    shard = make(tensors=TENSORS, rule=optim.TorchSGD(lr=0.1, momentum=0.9))
    with pytest.raises(InvalidArgument, match="momentum: the job keeps the slots momentum_buffer"):
        send(shard, 1, {"w": G}, constants={"w": {"momentum": 0.0}})


def test_in_bsp_constants_are_the_mean_of_those_who_give_them() -> None:
    shard = make(tensors=TENSORS, consistency=BSP(), pushers=("a", "b"), rule=optim.SGD(lr=1.0, momentum=0.0))
    pulled = shard.stamp
    shard.offer(shard.check(Push("b", 1, pulled, {"w": G}, constants={"w": {"lr": 4.0}})))
    send(shard, 1, {"w": G}, rates={"w": 2.0}, pulled=pulled)
    assert now(shard) == [0.0 - 1.5, 1.0 - 1.5, 2.0 - 1.5, 3.0 - 1.5]


def test_a_look_ahead_point_follows_the_momentum_of_its_tensor() -> None:
    shard = make(tensors=TENSORS, rule=optim.Nesterov(lr=1.0, momentum=0.9))
    send(shard, 1, {"w": G, "table": np.ones(18, np.float32)}, constants={"w": {"momentum": 0.5}})
    state = shard.state()
    ahead = torch.from_numpy(shard.read()["float32"].copy())
    w, velocity = state.arrays["w"], state.arrays["velocity"]
    assert ahead[18:].tolist() == (w["w"] + np.float32(0.5) * velocity["w"]).tolist()
    assert ahead[:18].tolist() == (w["table"] + np.float32(0.9) * velocity["table"]).tolist()


def test_constants_are_kept_with_the_state() -> None:
    rule = optim.SGD(lr=1.0, momentum=0.9)
    shard = make(tensors=TENSORS, rule=rule)
    send(shard, 1, {"w": G}, constants={"w": {"momentum": 0.5}}, rates={"w": 0.25})
    assert shard.state().constants == {"w": {"momentum": 0.5, "lr": 0.25}}
    again = make(tensors=TENSORS, rule=rule, state=shard.state())
    assert again.state().constants == shard.state().constants
    send(shard, 2, {"w": G})
    assert shard.state().constants == {}, "a push without any has the rule's own"
    send(shard, 3, {}, assign="w", constants={"w": {"lr": 0.125}})
    assert shard.state().constants == {"w": {"lr": 0.125}}
