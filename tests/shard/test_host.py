"""Pullers of a clock share one copy, which the update itself may have written; a push and its pull are one verb."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from adamserve import optim
from adamserve.edge.publishing import EncodedPublisher
from adamserve.errors import NotFound
from adamserve.shard import consistency
from adamserve.shard.host import ShardHost
from adamserve.values import Array, Deadline, Outcome, PullRequest, Push, Stamp, TensorSpec
from tests.cluster.conftest import until
from tests.shard.test_shard import make

TENSORS = [TensorSpec("w", (4,))]

SOON = Deadline.after(60.0, now=lambda: 0.0)
"""By a clock that stands still: this module may have been imported long before its tests run."""

HALF = PullRequest("a", encoding="bfloat16")


class Counting(EncodedPublisher):
    """Notes which copies are made, and whether another thread would have had to wait for the shard meanwhile."""

    host: ShardHost

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []
        self.taken: list[bool] = []

    def copy(self, arrays: Mapping[str, Array], encoding: str) -> Mapping[str, Array]:
        self.made.append(encoding)
        self.taken.append(taken(self.host))
        return super().copy(arrays, encoding)


def taken(host: ShardHost) -> bool:
    """Whether another thread would have to wait for the shard now."""
    with ThreadPoolExecutor(1) as other:
        free = other.submit(host._changed.acquire, blocking=False).result()
        if free:
            other.submit(host._changed.release).result()
        return not free


def hosted(rule: optim.Rule) -> tuple[ShardHost, Counting]:
    publisher = Counting()
    publisher.host = ShardHost(make(rule=rule, tensors=TENSORS), publisher)
    return publisher.host, publisher


def push(seq: int, **fields: object) -> Push:
    return replace(Push("a", seq, Stamp(1, seq - 1), {"w": np.full(4, 0.3, np.float32)}), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [optim.SGD(lr=1.0, momentum=0.0), optim.Nesterov(lr=1.0)], ids=repr)
def test_a_clock_has_one_copy_for_each_encoding_and_point(rule: optim.Rule) -> None:
    host, publisher = hosted(rule)
    receipt, answer = host.push_pull(push(1), HALF, deadline=SOON)
    assert (receipt.outcome, answer.stamp, publisher.made) == (Outcome.APPLIED, Stamp(1, 1), [])
    assert host.pull(HALF, deadline=SOON) is answer, "the update has written it"
    whole = host.pull(PullRequest("a"), deadline=SOON)
    assert host.pull(PullRequest(), deadline=SOON) is whole
    assert publisher.made == ["float32"]
    reader = host.pull(PullRequest(training=False), deadline=SOON)
    assert (reader is whole, len(publisher.made)) == ((False, 2) if rule.has_lookahead else (True, 1))

    again, later = host.push_pull(push(1), HALF, deadline=SOON)
    assert (again.outcome, later) == (Outcome.DUPLICATE, answer)
    host.push(push(2), deadline=SOON)
    fresh = host.pull(HALF, deadline=SOON)
    assert (fresh.stamp, publisher.made[-1]) == (Stamp(1, 2), "bfloat16")
    np.testing.assert_array_equal(
        fresh.arrays["float32"],
        EncodedPublisher().copy(host.pull(PullRequest(), deadline=SOON).arrays, "bfloat16")["float32"],
    )


def test_a_pull_that_is_refused_leaves_its_push_applied_and_uncounted_as_invalid() -> None:
    host, _ = hosted(optim.SGD(lr=1.0, momentum=0.0))
    with pytest.raises(NotFound, match="v"):
        host.push_pull(push(1), PullRequest("a", rows={"v": np.zeros(1, np.int64)}), deadline=SOON)
    statistics = host.statistics()
    assert (statistics.stamp, statistics.pushes) == (Stamp(1, 1), {"APPLIED": 1})
    assert host.push(push(1), deadline=SOON).outcome is Outcome.DUPLICATE


def test_nothing_changes_while_a_pull_copies_or_a_checkpoint_is_cut() -> None:
    """Half an update is never seen: whoever reads holds the shard's writer."""
    host, publisher = hosted(optim.SGD(lr=1.0, momentum=0.0))
    host.pull(PullRequest(), deadline=SOON)
    assert publisher.taken == [True]
    assert host.cut(lambda state: taken(host))
    assert not taken(host)


def test_whoever_waits_is_told_when_the_shard_is_closed() -> None:
    """And nobody waits there afterwards; what need not wait goes on."""
    shard = make(rule=optim.SGD(lr=1.0, momentum=0.0), tensors=TENSORS, consistency=consistency.parse("bsp"))
    host = ShardHost(shard, EncodedPublisher())
    for pusher in ("a", "b"):
        host.join(pusher, lease_s=60.0)
    with ThreadPoolExecutor(2) as pool:
        pushed = pool.submit(host.push, push(1), deadline=SOON)
        pulled = pool.submit(host.pull, PullRequest("", at_least=1), deadline=SOON)
        until(lambda: host.statistics().waiting == 1, "the push does not wait")
        host.close(NotFound("it is gone"))
        for waiting in (pushed, pulled):
            with pytest.raises(NotFound, match="it is gone"):
                waiting.result(timeout=30)
    with pytest.raises(NotFound, match="it is gone"):
        host.push(push(1), deadline=SOON)
    assert host.pull(PullRequest(""), deadline=SOON).stamp == Stamp(1, 0)
