"""Sharding is invisible: the same pushes on any number of shards give the same bits, for every rule and mode."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from adamserve import optim
from adamserve.shard.consistency import BSP, Async, Consistency, Decision
from adamserve.shard.geometry import partition
from adamserve.shard.shard import Shard
from adamserve.values import Array, Push, ShardState, Stamp, TensorSpec

TENSORS = [
    TensorSpec("a", (40, 30)),
    TensorSpec("scalar", ()),
    TensorSpec("empty", (0, 3)),
    TensorSpec("b", (7,)),
    TensorSpec("c", (3, 5, 11, 2)),
    TensorSpec("double", (13, 3), "float64"),
]
RULES: list[optim.Rule] = [
    optim.SGD(lr=0.1, momentum=0.9, l2=0.01),
    optim.Nesterov(lr=0.1, momentum=0.9),
    optim.AdaGrad(lr=0.1),
    optim.RMSProp(lr=0.01, weight_decay=0.1),
    optim.NesterovRMSProp(lr=0.01, momentum=0.5),
    optim.Adam(lr=0.01, amsgrad=True, lr_schedule="inverse_sqrt", beta1_decay=0.99),
    optim.LpAdam(lr=0.01, p=3.5),
    optim.AdaMax(lr=0.01),
]


def train(rule: optim.Rule, mode: Consistency, num_shards: int, steps: int = 15) -> dict[str, bytes]:
    """Final parameters after the same pushes by two pushers."""
    rng = np.random.default_rng(5)
    whole: Mapping[str, Array] = {s.name: rng.normal(size=s.numel).astype(s.dtype) for s in TENSORS}
    parts = partition(TENSORS, num_shards)
    shards = []
    for index, spans in enumerate(parts.shards):
        initial = {span.tensor: whole[span.tensor][span.start : span.stop] for span in spans}
        state = ShardState(index, Stamp(1, 0), (), {"w": initial})
        shards.append(Shard(partition=parts, state=state, rule=rule, consistency=mode))
        for pusher in ("a", "b"):
            shards[-1].join(pusher, lease_s=60.0)
    for step in range(1, steps + 1):
        for pusher in ("a", "b"):
            gradients = {s.name: rng.normal(size=s.numel).astype(s.dtype) for s in TENSORS}
            for shard, spans in zip(shards, parts.shards, strict=True):
                own = {span.tensor: gradients[span.tensor][span.start : span.stop] for span in spans}
                clock = step - 1 if mode.gathers else 0
                answer = shard.offer(shard.check(Push(pusher, step, Stamp(1, clock), own)))
                assert isinstance(answer, Decision) == (mode.gathers and pusher == "a")
    pieces: dict[str, bytes] = dict.fromkeys((s.name for s in TENSORS), b"")
    for shard, spans in zip(shards, parts.shards, strict=True):
        arrays = shard.state().arrays["w"]
        for span in spans:
            pieces[span.tensor] += arrays[span.tensor].tobytes()
    return pieces


@pytest.mark.parametrize("mode", [Async(staleness_lr="inverse"), BSP()], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_one_two_and_seven_shards_agree_bit_for_bit(rule: optim.Rule, mode: Consistency) -> None:
    one = train(rule, mode, 1)
    assert train(rule, mode, 2) == one
    assert train(rule, mode, 7) == one
    assert any(np.frombuffer(one["a"], np.float32) != 0)
