"""Gradients and pulls by rows over gRPC: the dense run's numbers, and bytes for the rows named."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

import adamserve
from adamserve import RemoteOptimizer, SparseRows, optim
from adamserve.client.client import Client
from adamserve.cluster.serving import Ready
from adamserve.errors import Conflict, InvalidArgument, NotFound
from adamserve.values import Array
from adamserve.wire import chunks, codec
from tests.served import Connect

SHAPE = (400, 8)


def start() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "table": rng.standard_normal(SHAPE).astype(np.float32),
        "cube": rng.standard_normal((30, 2, 3)),
        "bias": rng.standard_normal(5).astype(np.float32),
    }


@pytest.fixture
def pair(service: Ready) -> Any:
    """Clients of two jobs with the same parameters, one for gradients by rows and one for dense ones."""
    made: list[Client] = []
    for tables in (("table", "cube"), ()):
        client = adamserve.connect(service.target, f"job-{uuid.uuid4().hex[:12]}", timeout_s=20.0)
        client.create(start(), optim.Adam(lr=0.01, weight_decay=0.01), tables=tables)
        made.append(client)
    yield made
    for client in made:
        client.close()


def test_rows_do_what_their_dense_gradients_would(pair: list[Client]) -> None:
    by_rows, dense = pair
    rng = np.random.default_rng(1)
    (_, clock), (_, twin_clock) = by_rows.pull(), dense.pull()
    for step in range(40):
        # In no order, some twice.
        named = rng.integers(0, SHAPE[0], 9, dtype=np.int64)
        values = rng.standard_normal((9, SHAPE[1])).astype(np.float32)
        whole = np.zeros(SHAPE, np.float32)
        np.add.at(whole, named, values)
        cube = np.zeros((30, 2, 3))
        cube[step % 30] = step
        bias = rng.standard_normal(5).astype(np.float32)
        sent: Any = [
            SparseRows(named.astype(np.int32), values),
            scipy.sparse.csr_matrix(whole),
            torch.from_numpy(whole).to_sparse_coo(),
        ][step % 3]
        one = SparseRows(np.array([step % 30]), cube[[step % 30]])
        if step % 4:
            by_rows.push({"table": sent, "cube": one, "bias": bias}, clock)
        else:
            by_rows.push({"table": sent, "cube": one, "bias": bias}, clock, wait=False).result()
        dense.push({"table": whole, "cube": cube, "bias": bias}, twin_clock)
        asked = rng.integers(0, SHAPE[0], 30)
        some, clock = by_rows.pull(rows={"table": asked, "cube": np.array([3, 3])})
        twin, twin_clock = dense.pull()
        assert [stamp.clock for stamp in clock] == [stamp.clock for stamp in twin_clock]
        np.testing.assert_allclose(some["table"], twin["table"][asked], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(some["cube"], twin["cube"][[3, 3]], rtol=1e-9)
        np.testing.assert_allclose(some["bias"], twin["bias"], rtol=1e-6)
    np.testing.assert_allclose(by_rows.pull()[0]["table"], dense.pull()[0]["table"], rtol=1e-5, atol=1e-6)


def test_a_table_s_dense_pushes_and_pulls_keep_its_order(pair: list[Client]) -> None:
    rng = np.random.default_rng(4)
    for _ in range(3):
        gradients = {name: rng.standard_normal(a.shape).astype(a.dtype) for name, a in start().items()}
        into = {name: np.zeros_like(a) for name, a in start().items()}
        for client in pair:
            client.push(gradients, client.pull()[1])
        _, found, _ = pair[0].push_pull({}, pair[0].pull()[1], into=into)
        twin = pair[1].push_pull({}, pair[1].pull()[1])[1]
        for name, array in into.items():
            assert found[name] is array
            np.testing.assert_array_equal(array, twin[name])
    with pytest.raises(NotFound, match="no such tensor"):
        pair[0].create(start(), optim.Adam(), tables=["other"])
    with pytest.raises(Conflict, match="another configuration"):
        pair[0].create(start(), optim.Adam(lr=0.01, weight_decay=0.01))


def test_push_pull_by_rows(connect: Connect) -> None:
    client = connect()
    client.create({"w": np.zeros((9, 2), np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
    _, clock = client.pull(rows={"w": np.array([], np.int64)})
    gradient = SparseRows(np.array([7, 1]), np.array([[7.0, 7], [1, 1]], np.float32))
    _, found, clock = client.push_pull({"w": gradient}, clock, rows={"w": np.array([1, 8, 7])})
    assert found["w"].tolist() == [[-1, -1], [0, 0], [-7, -7]]
    assert [stamp.clock for stamp in clock] == [1, 1]


@pytest.mark.parametrize("wire_dtype", ["bfloat16", "float16", "int8"])
def test_rows_in_narrow_dtypes(connect: Connect, wire_dtype: str) -> None:
    client = connect(wire_dtype=wire_dtype)
    client.create({"w": np.zeros((9, 2), np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
    _, clock = client.pull()
    client.push({"w": SparseRows(np.array([7, 1]), np.array([[7.0, 6], [1, 2]], np.float32))}, clock)
    assert client.pull(rows={"w": np.array([1, 7])})[0]["w"].tolist() == [[-1, -2], [-7, -6]]


def test_lazy_is_an_option_of_the_job(connect: Connect) -> None:
    client = connect()
    client.create({"w": np.zeros((2, 1), np.float32)}, optim.SGD(lr=1.0, momentum=0.5), sparse="lazy")
    _, clock = client.pull()
    for _ in range(3):
        client.push({"w": SparseRows(np.array([1]), np.ones((1, 1), np.float32))}, clock)
        client.push({"w": SparseRows(np.array([0]), np.zeros((1, 1), np.float32))}, clock)
    # Row 1 saw its own three updates only: 1, 1.5 and 1.75.
    assert client.pull()[0]["w"].tolist() == [[0.0], [-4.25]]
    with pytest.raises(InvalidArgument, match="exact or lazy"):
        connect(job="other").create({"w": np.zeros(1, np.float32)}, optim.SGD(), sparse="sometimes")


def test_bad_rows_are_refused_before_anything_is_sent(connect: Connect) -> None:
    client = connect()
    client.create({"w": np.zeros((9, 2), np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
    _, clock = client.pull()
    with pytest.raises(InvalidArgument, match="w: row 9 is not one of 0 to 8"):
        client.push({"w": SparseRows(np.array([9]), np.ones((1, 2), np.float32))}, clock)
    with pytest.raises(InvalidArgument, match="w: row -1 is not one of 0 to 8"):
        client.pull(rows={"w": np.array([-1])})
    with pytest.raises(NotFound, match="no such tensor"):
        client.pull(rows={"no": np.array([0])})
    assert [stamp.clock for stamp in client.pull()[1]] == [0, 0]
    client.push({"w": np.ones((9, 2), np.float32)}, clock)


def test_what_travels_is_the_rows_named() -> None:
    """A row of 16 floats is 64 bytes of data and 4 of its number; 40 more a chunk."""
    numbers, values = np.arange(1000) * 10_000, np.zeros((1000, 16), np.float32)
    parts = list(codec.encode_rows("table", numbers, values, "float32"))
    assert sum(len(part) for field in parts for part in field) <= 1000 * 68 + 40
    [chunk] = chunks.split(b"".join(parts[0]))[1]
    found, same, _ = codec.decode_rows(chunk, 16)
    np.testing.assert_array_equal(found, numbers)
    np.testing.assert_array_equal(same, values)


@pytest.mark.parametrize("kind", ["Adam", "SGD", "Adagrad"])
def test_sparse_embeddings_train_as_dense_ones(service: Ready, kind: str) -> None:
    """nn.Embedding(sparse=True) with RemoteOptimizer against torch's dense optimizer on a dense one."""
    make: dict[str, Any] = {
        "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    }

    def model(sparse: bool) -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.EmbeddingBag(200, 6, mode="sum", sparse=sparse), nn.Linear(6, 3))

    local, remote = model(False), model(True)
    reference = make[kind](local.parameters())
    job = f"job-{uuid.uuid4().hex[:12]}"
    wrapped = make[kind](remote.parameters())
    with RemoteOptimizer.wrap(wrapped, service.target, job=job, tables=["0.weight"]) as optimizer:
        generator = torch.Generator().manual_seed(2)
        for _ in range(60):
            words = torch.randint(0, 200, (4, 5), generator=generator)
            labels = torch.randint(0, 3, (4,), generator=generator)
            for net, stepper in ((local, reference), (remote, optimizer)):
                stepper.zero_grad()
                loss: Tensor = nn.functional.cross_entropy(net(words), labels)
                loss.backward()
                stepper.step()
        embedding: Any = next(remote.children())
        assert embedding.weight.grad.layout is torch.sparse_coo
    for ours, theirs in zip(remote.parameters(), local.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
