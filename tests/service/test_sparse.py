"""Gradients and pulls by rows through a real Ray; the IMDB experiment that lives on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from adamserve import SparseRows, checkpoint, optim
from adamserve.cluster.cluster_client import ClusterClient
from adamserve.errors import InvalidArgument
from adamserve.values import Array
from tests.service.conftest import create
from tests.service.test_train import record_of, run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

Start = Callable[..., Any]


def parameters() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "table": rng.standard_normal((100, 4)).astype(np.float32),
        "bias": rng.standard_normal(3).astype(np.float32),
    }


def test_rows_do_what_their_dense_gradients_would(pair: Any, job: str) -> None:
    rule = optim.Adam(lr=0.05)
    create(pair, parameters(), rule=rule, shards=2, job=job, tables=["table"])
    create(pair, parameters(), rule=rule, shards=2, job=f"{job}-dense")
    rng = np.random.default_rng(1)
    with ClusterClient(pair, job, "a") as by_rows, ClusterClient(pair, f"{job}-dense", "a") as dense:
        by_rows.join()
        dense.join()
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
    number = ray.get(pair.checkpoint.remote(job))
    folder = ray.get(pair.folder.remote(job)) / f"{number:08d}"
    tensors = checkpoint.load_tensors(folder, checkpoint.verify(folder))
    np.testing.assert_array_equal(tensors["w"]["table"], found["table"])


def test_a_job_pushed_by_rows_is_taken_up_on_another_number_of_shards(start: Start, tmp_path: Path) -> None:
    """One shard to the checkpoint, three after it, with rows that no push touches meanwhile; against one dense rule."""
    rule = optim.Adam(lr=0.05, weight_decay=0.01)
    rng = np.random.default_rng(6)
    w = torch.from_numpy(parameters()["table"].copy())
    slots = rule.init(w)

    def train(controller: Any, pusher: str, steps: range) -> Array:
        with ClusterClient(controller, "rows", pusher) as client:
            client.join()
            for t in steps:
                named = np.unique(rng.integers(0, 20 * (1 + t % 5), 4))
                values = rng.standard_normal((len(named), 4)).astype(np.float32)
                client.push({"table": SparseRows(named, values)}, client.pull(rows={"table": named})[1])
                g = torch.zeros_like(w)
                g[torch.from_numpy(named)] = torch.from_numpy(values)
                rule.step_(w, g, slots, t)
            return client.pull(training=False)[0]["table"]

    first = start(shards=1, checkpoint_dir=tmp_path)
    create(first, {"table": parameters()["table"]}, rule=rule, job="rows", tables=["table"])
    train(first, "a", range(1, 21))
    ray.get(first.checkpoint.remote("rows"))
    second = start(shards=3, checkpoint_dir=tmp_path)
    ray.get(second.resume.remote("rows"))
    found = train(second, "b", range(21, 41))
    np.testing.assert_allclose(found, w.numpy(), rtol=1e-5, atol=1e-6)


def test_a_lazy_job_is_taken_up_as_one(start: Start, tmp_path: Path) -> None:
    """Row 0 gets a gradient once; its momentum would move it on if the job forgot that it is lazy."""
    rule = optim.SGD(lr=1.0, momentum=0.9)
    one = SparseRows(np.array([0]), np.ones((1, 1), np.float32))
    other = SparseRows(np.array([1]), np.ones((1, 1), np.float32))
    first = start(shards=1, checkpoint_dir=tmp_path)
    create(first, {"w": np.zeros((2, 1), np.float32)}, rule=rule, job="lazy", sparse="lazy")
    with ClusterClient(first, "lazy", "a") as client:
        client.join()
        client.push({"w": one}, client.pull()[1])
    ray.get(first.checkpoint.remote("lazy"))
    second = start(shards=1, checkpoint_dir=tmp_path)
    ray.get(second.resume.remote("lazy"))
    with ClusterClient(second, "lazy", "b") as client:
        client.join()
        client.push({"w": other}, client.pull()[1])
        assert client.pull(training=False)[0]["w"].tolist() == [[-1.0], [-1.0]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_imdb_by_rows_reaches_86_per_cent_for_a_twentieth_of_the_bytes(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logistic regression on 10,000 words with half of each review's words left out; 2 shards, 2 workers."""
    job = [
        "train",
        "logreg",
        "--dataset",
        "imdb",
        "--data-dir",
        shared_data,
        "--batch",
        4,
        "--format",
        "json",
    ]
    steps = 2000
    by_rows = record_of(run(*job, "--max-steps", steps, "--run-dir", tmp_path / "rows"))
    dense = record_of(run(*job, "--max-steps", 50, "--sparse", "dense", "--run-dir", tmp_path / "dense"))
    ratio = (
        sum(by_rows["bytes"].values()) / by_rows["steps"] / (sum(dense["bytes"].values()) / dense["steps"])
    )
    with capsys.disabled():
        print(f"\nIMDB by rows: test accuracy {by_rows['test_accuracy']:.4f}, bytes {ratio:.4f} of dense")
    assert by_rows["test_accuracy"] >= 0.86
    assert ratio <= 0.05
