"""A look at one update: exact where all elements are looked at, near where some are, and only when asked for."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adamserve import SparseRows, optim
from adamserve.edge.publishing import EncodedPublisher
from adamserve.shard.consistency import BSP, Async
from adamserve.shard.geometry import partition
from adamserve.shard.host import ShardHost
from adamserve.shard.sampling import BLOCK, BLOCKS
from adamserve.shard.shard import Shard
from adamserve.shard.statistics import Seen
from adamserve.values import Array, Deadline, Gradient, Push, ShardState, Stamp, TensorSpec

SECONDS = Deadline.after(60, now=lambda: 0.0)
"""By a clock that stands still, as in test_host.py."""


def host(
    *tensors: TensorSpec, rule: optim.Rule | None = None, bsp: bool = False, exact: bool = True
) -> tuple[ShardHost, Shard]:
    parts = partition(tensors, 1)
    initial = {spec.name: np.zeros(spec.numel, spec.dtype) for spec in tensors}
    shard = Shard(
        partition=parts,
        state=ShardState(0, Stamp(1, 0), (), {"w": initial}),
        rule=rule or optim.SGD(lr=0.5, momentum=0.0),
        consistency=BSP() if bsp else Async(),
        exact=exact,
    )
    made = ShardHost(shard, EncodedPublisher())
    made.join("a", lease_s=1e6)
    return made, shard


def push(made: ShardHost, shard: Shard, seq: int, **gradients: Gradient) -> None:
    made.push(Push("a", seq, shard.stamp, gradients), deadline=SECONDS)


def seen(made: ShardHost) -> Seen:
    found = made.statistics().seen
    assert found is not None
    return found


def test_nothing_is_looked_at_unless_asked_and_then_one_update() -> None:
    made, shard = host(TensorSpec("w", (3,)))
    push(made, shard, 1, w=np.array([1, 2, 2], np.float32))
    assert made.statistics().seen is None
    assert made.glance().seen is None  # asks
    push(made, shard, 2, w=np.array([3, 0, -4], np.float32))
    push(made, shard, 3, w=np.array([9, 9, 9], np.float32))
    assert seen(made) == Seen(5.0, 2.0, None)  # SGD has no bound
    made.glance()
    push(made, shard, 4, w=np.zeros(3, np.float32))
    assert seen(made) == Seen(0.0, 0.0, None)


def test_a_step_stays_within_its_rule_s_bound() -> None:
    rule = optim.AdaMax(lr=0.25)
    made, shard = host(TensorSpec("w", (3,)), TensorSpec("d", (2, 2), "float64"), rule=rule)
    for seq in range(1, 40):
        made.glance()
        rng = np.random.default_rng(seq)
        gradients: dict[str, Array] = {
            "w": rng.normal(size=3).astype(np.float32),
            "d": rng.normal(size=4),
        }
        before = {dtype: array.copy() for dtype, array in shard.read().items()}
        made.push(Push("a", seq, shard.stamp, gradients, 0.125), deadline=SECONDS)
        after = shard.read()
        found = seen(made)
        norm = math.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in gradients.values()))
        assert found.gradient_norm == pytest.approx(norm, rel=1e-6)
        moved = max(float(np.abs(after[d].astype(float) - before[d]).max()) for d in after)
        assert found.step == pytest.approx(moved, rel=1e-6)
        assert found.step_bound == pytest.approx(rule.step_bound(seq, lr=0.125), rel=1e-12)
        assert found.step is not None
        assert found.step <= (found.step_bound or 0) * (1 + 1e-6)


def test_rates_of_their_own_count_in_the_bound() -> None:
    made, shard = host(TensorSpec("a", (2,)), TensorSpec("b", (2,)), rule=optim.AdaGrad(lr=1.0))
    made.glance()
    ones = np.ones(2, np.float32)
    made.push(Push("a", 1, shard.stamp, {"a": ones, "b": ones}, None, {"b": 4.0}), deadline=SECONDS)
    assert seen(made) == Seen(2.0, 4.0, 4.0)


@pytest.mark.parametrize(
    "shapes", [[(300_000,)], [(17, 31)] * 500, [(1,)] * 5000, [(40_000,), (3,), (64, 64)]]
)
def test_of_a_large_shard_a_sample_is_looked_at(shapes: list[tuple[int, ...]]) -> None:
    specs = [TensorSpec(f"t{i}", shape) for i, shape in enumerate(shapes)]
    made, shard = host(*specs)
    rng = np.random.default_rng(0)
    gradients: dict[str, Array] = {s.name: rng.normal(size=s.numel).astype(np.float32) for s in specs}
    made.glance()
    push(made, shard, 1, **gradients)
    found = seen(made)
    elements = sum(s.numel for s in specs)
    assert found.gradient_norm == pytest.approx(math.sqrt(elements), rel=0.1)
    assert found.step is not None
    assert 0.5 * 2.0 < found.step <= 0.5 * max(float(np.abs(g).max()) for g in gradients.values())
    look = shard.store.probe._last
    assert look is not None
    assert look.after is not None
    assert BLOCKS <= len(look.after) <= BLOCKS * BLOCK


def test_a_round_is_looked_at_as_its_mean() -> None:
    made, shard = host(TensorSpec("w", (2,)), bsp=True)
    made.join("b", lease_s=1e6)
    made.glance()
    for pusher, gradient in (("a", [6, 8]), ("b", [0, 0])):
        shard.offer(shard.check(Push(pusher, 1, Stamp(1, 0), {"w": np.array(gradient, np.float32)})))
    assert shard.stamp.clock == 1
    assert seen(made) == Seen(5.0, 2.0, None)


def test_rows_have_a_norm_and_no_step() -> None:
    made, shard = host(TensorSpec("table", (50, 4)), TensorSpec("w", (2,)))
    rows = SparseRows(np.array([3, 30]), np.full((2, 4), 2.0, np.float32))
    made.glance()
    push(made, shard, 1, table=rows)
    assert seen(made) == Seen(math.sqrt(32.0), None, None)
    made.glance()
    push(made, shard, 2, table=rows, w=np.array([1, 0], np.float32))
    assert seen(made) == Seen(math.sqrt(33.0), 0.5, None)
    made.glance()
    push(made, shard, 3, table=np.ones(200, np.float32))  # dense, while rows may be behind
    found = seen(made)
    assert found.gradient_norm == pytest.approx(math.sqrt(200.0))
    assert found.step is None


def test_a_busy_shard_does_not_keep_a_scrape_waiting() -> None:
    made, shard = host(TensorSpec("w", (2,)))
    kept = made.statistics()
    push(made, shard, 1, w=np.ones(2, np.float32))

    with ThreadPoolExecutor(1) as scraper:
        with made._changed:  # as a long update holds it
            assert scraper.submit(made.glance, 0.01).result(timeout=5) == kept
        assert scraper.submit(made.glance, 0.01).result(timeout=5).stamp.clock == 1


def test_the_looks_change_nothing() -> None:
    results = []
    for asked in (False, True):
        made, shard = host(TensorSpec("w", (500,)), TensorSpec("table", (40, 3)), rule=optim.Adam(lr=0.1))
        for seq in range(1, 20):
            rng = np.random.default_rng(seq)
            if asked:
                made.glance()
            rows = SparseRows(np.array([seq]), rng.normal(size=(1, 3)).astype(np.float32))
            push(made, shard, seq, w=rng.normal(size=500).astype(np.float32), table=rows)
        results.append(shard.read()["float32"].tobytes())
    assert results[0] == results[1]
