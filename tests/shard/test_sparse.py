"""Gradients by rows: what is accepted, and that a shard treats them as the dense gradients that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from adamserve import SparseRows, optim
from adamserve.errors import InvalidArgument, NotFound
from adamserve.shard import sparse
from adamserve.shard.consistency import BSP, Async, Consistency, Decision
from adamserve.shard.geometry import partition
from adamserve.shard.shard import Shard
from adamserve.values import Array, Gradient, Push, Receipt, ShardState, Stamp, TensorSpec
from tests.shard.test_consistency import ManualClock

SPEC = TensorSpec("w", (5, 2, 3))
TENSORS = [
    TensorSpec("table", (40, 3)),
    TensorSpec("bias", (7,)),
    TensorSpec("double", (12, 2, 2), "float64"),
]


def rows(*numbers: int, dtype: str = "float32", shape: tuple[int, ...] = (2, 3)) -> SparseRows:
    values = np.ones((len(numbers), *shape), dtype)
    return SparseRows(np.array(numbers, np.int64), values)


BAD: dict[str, tuple[TensorSpec, SparseRows, str]] = {
    "beyond the end": (SPEC, rows(0, 5), "row 5 is not one of 0 to 4"),
    "negative": (SPEC, rows(-1), "row -1 is not one of 0 to 4"),
    "another width": (SPEC, rows(1, shape=(2, 4)), "values of shape (1, 2, 4) for 1 rows of (2, 3)"),
    "more values than rows": (SPEC, SparseRows(np.array([1]), np.ones((2, 2, 3), np.float32)), "for 1 rows"),
    "more rows than the table": (SPEC, rows(*[1] * 6), "6 rows for a tensor of 5"),
    "floating row numbers": (SPEC, SparseRows(np.array([1.0]), np.ones((1, 2, 3), np.float32)), "float64"),
    "row numbers in a matrix": (SPEC, SparseRows(np.array([[1]]), np.ones((1, 2, 3), np.float32)), "(1, 1)"),
    "NaN": (SPEC, SparseRows(np.array([1]), np.full((1, 2, 3), np.nan, np.float32)), "NaN or infinity"),
    "a sum that overflows": (
        SPEC,
        SparseRows(np.array([1, 1]), np.full((2, 2, 3), 3e38, np.float32)),
        "NaN or infinity",
    ),
    "double precision": (SPEC, rows(1, dtype="float64"), "dtype float64 for a float32 parameter"),
    "a scalar": (TensorSpec("w", ()), rows(0, shape=()), "has no rows"),
    "rows without elements": (TensorSpec("w", (5, 0)), rows(0, shape=(0,)), "has no rows"),
    "huge rows": (TensorSpec("w", (2, 20_000)), rows(0, shape=(20_000,)), "too long"),
}


@pytest.mark.parametrize(("spec", "gradient", "problem"), BAD.values(), ids=BAD)
def test_bad_rows_are_refused_with_the_tensor_s_name(
    spec: TensorSpec, gradient: SparseRows, problem: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        sparse.checked(spec, gradient)
    assert caught.value.field == "w"
    assert problem in caught.value.problem


@pytest.mark.parametrize("case", BAD)
def test_a_shard_refuses_them_too_and_keeps_every_byte(case: str) -> None:
    spec, gradient, _ = BAD[case]
    [shard] = make([spec], 1, optim.Adam())
    before = shard.state()
    with pytest.raises(InvalidArgument, match=r"^w: "):
        shard.check(Push("a", 1, Stamp(1, 0), {"w": gradient}))
    after = shard.state()
    assert after.stamp == before.stamp
    assert {s: a["w"].tobytes() for s, a in after.arrays.items()} == {
        s: a["w"].tobytes() for s, a in before.arrays.items()
    }


def test_a_shard_takes_its_own_rows_only() -> None:
    shards = make([TensorSpec("w", (10, 2))], 2, optim.SGD())
    with pytest.raises(InvalidArgument, match="row 4 is not one of 5 to 9"):
        shards[1].check(Push("a", 1, Stamp(1, 0), {"w": rows(4, shape=(2,))}))
    with pytest.raises(NotFound, match="no tensor"):
        shards[1].check(Push("a", 1, Stamp(1, 0), {"no": rows(4, shape=(2,))}))
    with pytest.raises(InvalidArgument, match="row 4 is not one of 5 to 9"):
        shards[1].store.read_rows({"w": np.array([4])})
    with pytest.raises(InvalidArgument, match="do not increase"):
        shards[1].store.read_rows({"w": np.array([6, 6])})


def test_an_empty_push_is_a_zero_gradient() -> None:
    """The clock grows, and momentum moves the parameters on."""
    [dense] = make([SPEC], 1, optim.SGD())
    [by_rows] = make([SPEC], 1, optim.SGD())
    for shard, nothing in ((dense, np.zeros(30, np.float32)), (by_rows, rows())):
        push(shard, 1, {"w": np.ones(30, np.float32)})
        push(shard, 2, {"w": nothing})
    assert by_rows.stamp.clock == 2
    np.testing.assert_allclose(by_rows.read()["float32"], dense.read()["float32"], rtol=1e-6)


@given(st.permutations([(1, 0.5), (3, 2.0), (1, 4.0), (0, 8.0), (3, -1.0)]))
def test_rows_in_any_order_and_named_twice_are_summed(pairs: list[tuple[int, float]]) -> None:
    indices = np.array([row for row, _ in pairs], np.int32)
    values = np.array([[value] for _, value in pairs], np.float32)
    found = sparse.checked(TensorSpec("w", (5, 1)), SparseRows(indices, values))
    assert found.indices.tolist() == [0, 1, 3]
    assert found.values.tolist() == [[8.0], [4.5], [1.0]]


def test_torch_and_scipy_gradients_become_rows() -> None:
    dense = torch.zeros(6, 3)
    dense[1, 2], dense[4, 0], dense[4, 1] = 5.0, 1.0, 2.0
    embedding = torch.sparse_coo_tensor(
        torch.tensor([[4, 1, 4]]),
        torch.tensor([[1.0, 0, 0], [0, 0, 5], [0, 2, 0]]),
        (6, 3),
        check_invariants=True,
    )
    for gradient in (dense.to_sparse_coo(), embedding, scipy.sparse.csr_matrix(dense.numpy())):
        found = sparse.as_rows("w", gradient)
        assert found is not None
        found = sparse.checked(TensorSpec("w", (6, 3)), found)
        assert found.indices.tolist() == [1, 4]
        np.testing.assert_array_equal(found.values, dense[[1, 4]].numpy())
    assert sparse.as_rows("w", dense) is None
    with pytest.raises(InvalidArgument, match=r"to_sparse_coo"):
        sparse.as_rows("w", dense.to_mkldnn())


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 12, 100, 9973, 10_000, 50_000, 10_000_000])
def test_a_table_s_rows_have_a_place_each(total: int) -> None:
    stride = sparse.table_stride(total)
    spec = TensorSpec("w", (total, 1), stride=stride)
    if total <= 50_000:
        places = sparse.places(spec, np.arange(total))
        assert sorted(places.tolist()) == list(range(total))
        array = np.random.default_rng(0).standard_normal((total, 1)).astype(np.float32)
        np.testing.assert_array_equal(sparse.in_order(spec, sparse.to_places(spec, array)), array)
    assert total < 6 or stride > 1


@pytest.mark.parametrize("num_shards", [2, 3, 7, 16])
def test_zipf_accesses_are_shared_evenly_by_the_shards(num_shards: int) -> None:
    """Pushes of 1,000 draws from a vocabulary sorted by frequency: distinct rows a shard, against the mean.

    Contiguous blocks give the first shard most of them."""
    rng = np.random.default_rng(0)
    weights = np.cumsum(1.0 / np.arange(1, 50_001))
    pushes = [np.unique(np.searchsorted(weights, rng.random(1000) * weights[-1])) for _ in range(50)]

    def busiest(stride: int) -> float:
        spec = TensorSpec("w", (50_000, 8), stride=stride)
        spans = [spans[0] for spans in partition([spec], num_shards).shards]
        found = [np.sort(sparse.places(spec, push)) for push in pushes]
        loads = [sum(len(push[sparse.within(push, span, 8)]) for push in found) for span in spans]
        return max(loads) / (sum(loads) / num_shards)

    assert busiest(sparse.table_stride(50_000)) < 1.1
    assert busiest(1) > 1.5


@pytest.mark.parametrize(
    ("shape", "stride"), [((), 3), ((4,), 2), ((4,), 4), ((4,), 5), ((4,), -1), ((4,), 0), ((0, 2), 3)]
)
def test_a_stride_that_gives_two_rows_one_place_is_refused(shape: tuple[int, ...], stride: int) -> None:
    with pytest.raises(InvalidArgument, match="stride"):
        TensorSpec("w", shape, stride=stride)


# ---- shards


def make(
    tensors: list[TensorSpec],
    num_shards: int,
    rule: optim.Rule,
    consistency: Consistency | None = None,
    pushers: str = "a",
    states: list[ShardState] | None = None,
) -> list[Shard]:
    parts = partition(tensors, num_shards)
    rng = np.random.default_rng(8)
    whole = {spec.name: rng.normal(size=spec.numel).astype(spec.dtype) for spec in tensors}
    shards = []
    for index, spans in enumerate(parts.shards):
        initial = {span.tensor: whole[span.tensor][span.start : span.stop] for span in spans}
        start = states[index] if states else ShardState(index, Stamp(1, 0), (), {"w": initial})
        mode = consistency or Async()
        shard = Shard(partition=parts, state=start, rule=rule, consistency=mode, now=ManualClock())
        for pusher in pushers:
            shard.join(pusher, lease_s=1e9)
        shards.append(shard)
    return shards


def push(
    shard: Shard, seq: int, gradients: Any, pusher: str = "a", pulled: int | None = None, **fields: Any
) -> Any:
    clock = shard.stamp.clock if pulled is None else pulled
    at = Stamp(shard.stamp.incarnation, clock)
    answer = shard.offer(shard.check(Push(pusher, seq, at, gradients, **fields)))
    return answer if isinstance(answer, Decision) else answer.receipt


def everywhere(shards: list[Shard], seq: int, gradients: dict[str, Gradient], **fields: Any) -> list[Any]:
    answers = []
    for shard in shards:
        spans = shard.partition.shards[shard.index]
        own = {s.tensor: sparse.part(gradients[s.tensor], s) for s in spans if s.tensor in gradients}
        answers.append(push(shard, seq, own, **fields))
    return answers


def contents(shards: list[Shard]) -> dict[str, Array]:
    """Parameters and slots, put together from all shards."""
    found: dict[str, list[Array]] = {}
    for shard in shards:
        for slot, arrays in shard.state().arrays.items():
            for name, values in arrays.items():
                found.setdefault(f"{slot}/{name}", []).append(values.copy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def same(a: dict[str, Array], b: dict[str, Array], rtol: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(
            a[name], b[name], rtol=rtol, atol=1e-6 * np.abs(b[name]).max(), err_msg=name
        )


def gradient_of(rng: np.random.Generator, spec: TensorSpec) -> tuple[SparseRows, Array]:
    """A gradient of some rows, and the dense one that it stands for."""
    count = int(rng.integers(0, 6))
    named = rng.integers(0, spec.shape[0], count)
    values = rng.normal(size=(count, *spec.shape[1:])).astype(spec.dtype)
    dense = np.zeros(spec.shape, spec.dtype)
    np.add.at(dense, named, values)
    return sparse.checked(spec, SparseRows(named, values)), dense.reshape(-1)


@pytest.mark.parametrize("num_shards", [1, 2, 7])
@pytest.mark.parametrize(
    "rule",
    [
        optim.SGD(lr=0.1, momentum=0.9),
        optim.Nesterov(lr=0.1, momentum=0.9, weight_decay=0.01),
        optim.AdaGrad(lr=0.1),
        optim.RMSProp(lr=0.01, weight_decay=0.1),
        optim.NesterovRMSProp(lr=0.01, momentum=0.5),
        optim.Adam(lr=0.01, amsgrad=True, lr_schedule="inverse_sqrt"),
        optim.LpAdam(lr=0.01),
        optim.AdaMax(lr=0.01),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_interleaved_with_dense_pushes_pulls_and_restarts(
    rule: optim.Rule, num_shards: int, tmp_path: Path
) -> None:
    """Sparse, dense and missing gradients, moving rates, pulls of everything and of rows, checkpoints."""
    rng = np.random.default_rng(21)
    dense, by_rows = make(TENSORS, 1, rule), make(TENSORS, num_shards, rule)
    for seq in range(1, 61):
        lr = [None, 0.02, 0.005][int(rng.integers(0, 3))]
        gradients: dict[str, Gradient] = {}
        twins: dict[str, Gradient] = {}
        for spec in TENSORS:
            kind = int(rng.integers(0, 8))
            found, twin = gradient_of(rng, spec)
            if kind < 6:
                gradients[spec.name], twins[spec.name] = (found if kind else twin), twin
        everywhere(dense, seq, twins, lr=lr)
        everywhere(by_rows, seq, gradients, lr=lr)
        if seq % 13 == 0:
            whole = {k: a for shard in dense for k, a in shard.store.read_rows({}).items()}
            for shard in by_rows:
                for span in shard.partition.shards[shard.index]:
                    width = shard.partition.specs[span.tensor].width
                    first, stop = sparse.rows_of(span, width)
                    asked = np.unique(rng.integers(first, stop, 4))
                    found_rows = shard.store.read_rows({span.tensor: asked})[span.tensor]
                    expected = whole[span.tensor].reshape(-1, width)[asked]
                    np.testing.assert_allclose(found_rows, expected, rtol=1e-4, atol=1e-6)
        if seq % 25 == 0:
            states = [shard.state() for shard in by_rows]
            kept = [ShardState(s.shard, s.stamp, s.segments, _copied(s.arrays), s.pushers) for s in states]
            by_rows = make(TENSORS, num_shards, rule, states=kept)
        if seq % 20 == 0:
            for shard in by_rows:
                shard.read()
    same(contents(by_rows), contents(dense))


def _copied(arrays: Any) -> dict[str, dict[str, Array]]:
    return {slot: {name: values.copy() for name, values in held.items()} for slot, held in arrays.items()}


@pytest.mark.parametrize("kinds", ["rr", "rd", "dr", "r-"], ids=str)
def test_bsp_averages_rows_with_rows_and_with_dense(kinds: str) -> None:
    """r: by rows, d: dense, -: left out. Bit for bit the dense average."""
    rng = np.random.default_rng(4)
    rule = optim.SGD(lr=0.5, momentum=0.0)
    shards, twins = (make(TENSORS, 2, rule, BSP(), pushers="ab") for _ in range(2))
    for seq in range(1, 5):
        for pusher, kind in zip("ab", kinds, strict=True):
            found, twin = gradient_of(rng, TENSORS[0])
            sent: dict[str, Gradient] = {} if kind == "-" else {"table": found if kind == "r" else twin}
            dense: dict[str, Gradient] = {} if kind == "-" else {"table": twin}
            answers = everywhere(shards, seq, sent, pusher=pusher)
            everywhere(twins, seq, dense, pusher=pusher)
            assert all(isinstance(answer, Receipt) for answer in answers) == (pusher == "b")
    assert {k: v.tobytes() for k, v in contents(shards).items()} == {
        k: v.tobytes() for k, v in contents(twins).items()
    }


def test_delay_compensation_of_rows_is_that_of_the_dense_gradient() -> None:
    rng = np.random.default_rng(5)
    mode = Async(delay_compensation=0.5)
    shards, twins = (make(TENSORS, 2, optim.Adam(lr=0.1), mode, pushers="ab") for _ in range(2))
    for seq in range(1, 8):
        for group in (shards, twins):
            for shard in group:
                shard.note_pull("b")
        pulled = seq * 2 - 2
        for pusher in "ab":
            found, twin = gradient_of(rng, TENSORS[0])
            everywhere(shards, seq, {"table": found}, pusher=pusher, pulled=pulled)
            everywhere(twins, seq, {"table": twin}, pusher=pusher, pulled=pulled)
    same(contents(shards), contents(twins))


def test_lazy_rows_stay_as_they_are() -> None:
    parts = partition([SPEC], 1)
    start = ShardState(0, Stamp(1, 0), (), {"w": {"w": np.zeros(30, np.float32)}})
    rule = optim.SGD(lr=1.0, momentum=0.9)
    shard = Shard(
        partition=parts, state=start, rule=rule, consistency=Async(), exact=False, now=ManualClock()
    )
    shard.join("a", lease_s=1e9)
    push(shard, 1, {"w": rows(1)})
    push(shard, 2, {"w": rows(2)})
    assert shard.read()["float32"].reshape(5, 6)[:, 0].tolist() == [0.0, -1.0, -1.0, 0.0, 0.0]


def test_lazy_adam_is_torch_s_sparse_adam() -> None:
    """Bias correction by the count of all pushes; torch's eps stands outside the root."""
    torch.manual_seed(0)
    weight = torch.randn(10, 4)
    embedding = torch.nn.Parameter(weight.clone())
    local = torch.optim.SparseAdam([embedding], lr=0.01, eps=1e-8)
    rule = optim.Adam(lr=0.01, eps=1e-8, eps_inside_sqrt=False)
    start = ShardState(0, Stamp(1, 0), (), {"w": {"w": weight.numpy().reshape(-1).copy()}})
    shard = Shard(
        partition=partition([TensorSpec("w", (10, 4))], 1), state=start, rule=rule, consistency=Async(),
        exact=False, now=ManualClock(),
    )  # fmt: skip
    shard.join("a", lease_s=1e9)
    for seq in range(1, 30):
        gradient = torch.sparse_coo_tensor(
            torch.randint(0, 10, (1, 3)), torch.randn(3, 4), (10, 4), check_invariants=True
        )
        embedding.grad = gradient
        local.step()
        found = sparse.as_rows("w", gradient)
        push(shard, seq, {"w": found})
    np.testing.assert_allclose(
        shard.read()["float32"].reshape(10, 4), embedding.detach().numpy(), rtol=1e-5, atol=1e-6
    )
