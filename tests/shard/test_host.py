"""Pullers of a clock share one copy, which the update itself may have written."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from adamserve import optim
from adamserve.shard.geometry import partition
from adamserve.shard.host import ShardHost
from adamserve.values import Array, Deadline, Push, Stamp, TensorSpec
from tests.shard.test_shard import make

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


def test_nothing_changes_while_a_pull_copies_or_a_checkpoint_is_cut(tmp_path: Path) -> None:
    """Half an update is never seen: whoever reads holds the shard's writer."""
    shard = make(tensors=TENSORS)
    host = ShardHost(partition(TENSORS, 1), shard)
    deadline = Deadline.after(10.0)

    def taken() -> bool:
        """Whether another thread would have to wait for the shard now."""
        with ThreadPoolExecutor(1) as other:
            free = other.submit(host._changed.acquire, blocking=False).result()
            if free:
                other.submit(host._changed.release).result()
            return not free

    seen: list[bool] = []
    host.pull(lambda arrays: seen.append(taken()), deadline=deadline)
    assert seen == [True]
    assert not taken()
    with ThreadPoolExecutor(1) as other:
        with host._changed:
            writing = other.submit(host.write, tmp_path)
            with pytest.raises(TimeoutError):
                writing.result(timeout=0.2)
        writing.result(timeout=10)
