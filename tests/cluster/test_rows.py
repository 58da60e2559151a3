"""Gradients and pulls by rows, through a whole service; also across its end and a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adamserve import SparseRows, checkpoint, optim, testing
from adamserve.errors import InvalidArgument
from adamserve.values import Array
from tests.cluster.conftest import Start


def parameters() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "table": rng.standard_normal((100, 4)).astype(np.float32),
        "bias": rng.standard_normal(3).astype(np.float32),
    }


def test_rows_do_what_their_dense_gradients_would(start: Start, tmp_path: Path) -> None:
    service = start(shards=2)
    rule = optim.Adam(lr=0.05)
    rng = np.random.default_rng(1)
    with service.client("job", pusher="a") as by_rows, service.client("dense", pusher="a") as dense:
        by_rows.create(parameters(), rule, tables=["table"])
        dense.create(parameters(), rule)
        for _ in range(30):
            asked = rng.integers(0, 100, 12)
            some, clock = by_rows.pull(rows={"table": asked})
            whole, twin_clock = dense.pull()
            np.testing.assert_allclose(some["table"], whole["table"][asked], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(some["bias"], whole["bias"])
            named = rng.integers(0, 100, 5)
            values = rng.standard_normal((5, 4)).astype(np.float32)
            twin = np.zeros((100, 4), np.float32)
            np.add.at(twin, named, values)
            by_rows.push({"table": SparseRows(named, values), "bias": np.ones(3, np.float32)}, clock, lr=0.01)
            dense.push({"table": twin, "bias": np.ones(3, np.float32)}, twin_clock, lr=0.01)
        with pytest.raises(InvalidArgument, match="table: row 100 is not one of 0 to 99"):
            by_rows.push({"table": SparseRows(np.array([100]), values[:1])}, clock)
        found, expected = by_rows.pull(training=False)[0], dense.pull(training=False)[0]
        np.testing.assert_allclose(found["table"], expected["table"], rtol=1e-5, atol=1e-6)
        whole = {name: rng.standard_normal(a.shape).astype(a.dtype) for name, a in parameters().items()}
        for client in (by_rows, dense):
            client.push(whole, client.pull()[1])
        found, expected = by_rows.pull()[0], dense.pull()[0]
        np.testing.assert_allclose(found["table"], expected["table"], rtol=1e-5, atol=1e-6)
    folder = tmp_path / "job" / f"{service.checkpoint('job'):08d}"
    tensors = checkpoint.load_tensors(folder, checkpoint.verify(folder))
    np.testing.assert_array_equal(tensors["w"]["table"], found["table"])


def test_a_job_pushed_by_rows_is_taken_up_on_another_number_of_shards(start: Start) -> None:
    """One shard to the checkpoint, three after it, with rows that no push touches meanwhile; against one dense rule."""
    rule = optim.Adam(lr=0.05, weight_decay=0.01)
    rng = np.random.default_rng(6)
    w = torch.from_numpy(parameters()["table"].copy())
    slots = rule.init(w)

    def train(service: testing.Service, pusher: str, steps: range) -> Array:
        with service.client("rows", pusher=pusher) as client:
            client.create({"table": parameters()["table"]}, rule, tables=["table"])
            for t in steps:
                named = np.unique(rng.integers(0, 20 * (1 + t % 5), 4))
                values = rng.standard_normal((len(named), 4)).astype(np.float32)
                client.push({"table": SparseRows(named, values)}, client.pull(rows={"table": named})[1])
                g = torch.zeros_like(w)
                g[torch.from_numpy(named)] = torch.from_numpy(values)
                rule.step_(w, g, slots, t)
            return client.pull(training=False)[0]["table"]

    first = start(shards=1)
    train(first, "a", range(1, 21))
    first.checkpoint("rows")
    first.stop()
    second = start(shards=3)
    second.resume("rows")
    found = train(second, "b", range(21, 41))
    np.testing.assert_allclose(found, w.numpy(), rtol=1e-5, atol=1e-6)


def test_a_lazy_job_is_taken_up_as_one(start: Start) -> None:
    """Row 0 gets a gradient once; its momentum would move it on if the job forgot that it is lazy."""
    rule = optim.SGD(lr=1.0, momentum=0.9)
    one = SparseRows(np.array([0]), np.ones((1, 1), np.float32))
    other = SparseRows(np.array([1]), np.ones((1, 1), np.float32))
    first = start(shards=1)
    with first.client("lazy", pusher="a") as client:
        client.create({"w": np.zeros((2, 1), np.float32)}, rule, sparse="lazy")
        client.push({"w": one}, client.pull()[1])
    first.checkpoint("lazy")
    first.stop()
    second = start(shards=1)
    second.resume("lazy")
    with second.client("lazy", pusher="b") as client:
        client.push({"w": other}, client.pull()[1])
        assert client.pull(training=False)[0]["w"].tolist() == [[-1.0], [-1.0]]
