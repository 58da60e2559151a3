"""Pullers of a clock share one copy, which the update itself may have written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from adamserve import optim
from adamserve.partition import partition
from adamserve.service.host import ShardHost
from adamserve.values import Array, Deadline, Push, Stamp, TensorSpec
from tests.unit.test_shard import make

TENSORS = [TensorSpec("w", (4,))]


@pytest.mark.parametrize("rule", [optim.SGD(lr=1.0, momentum=0.0), optim.Nesterov(lr=1.0)], ids=repr)
def test_a_copy_is_adopted_for_its_moment_alone(rule: optim.Rule) -> None:
    shard = make(rule=rule, tensors=TENSORS)
    host = ShardHost(partition(TENSORS, 1), shard)
    deadline = Deadline.after(10.0)
    made: list[Mapping[str, Array]] = []

    def publish(arrays: Mapping[str, Array]) -> str:
        made.append(arrays)
        return f"made at {shard.stamp.clock}"

    def push(seq: int) -> None:
        host.push(Push("a", seq, shard.stamp, {"w": np.ones(4, np.float32)}), deadline=deadline)

    push(1)
    host.adopt(publish, Stamp(1, 1), "adopted")
    assert host.pull(publish, deadline=deadline, pusher="a") == (Stamp(1, 1), "adopted")
    assert not made
    push(2)
    host.adopt(publish, Stamp(1, 1), "too late")
    assert host.pull(publish, deadline=deadline) == (Stamp(1, 2), "made at 2")
    assert host.pull(publish, deadline=deadline) == (Stamp(1, 2), "made at 2")
    assert len(made) == 1
    if rule.has_lookahead:
        push(3)
        host.adopt(publish, Stamp(1, 3), "adopted")
        assert host.pull(publish, deadline=deadline, training=False)[1] == "made at 3", "w is another copy"
