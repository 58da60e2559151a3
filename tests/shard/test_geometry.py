"""Every element belongs to exactly one shard, and the shards weigh the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamserve.errors import InvalidArgument, NotFound
from adamserve.shard.geometry import BLOCK_BYTES, Partition, partition
from adamserve.values import ITEM_BYTES, Span, TensorSpec

shapes = st.lists(st.integers(0, 40), max_size=4).map(tuple)


@st.composite
def jobs(draw: st.DrawFn) -> list[TensorSpec]:
    drawn = draw(st.lists(st.tuples(shapes, st.sampled_from(sorted(ITEM_BYTES))), max_size=12))
    return [TensorSpec(f"t{i}", shape, dtype) for i, (shape, dtype) in enumerate(drawn)]


def sizes(parts: Partition) -> list[int]:
    """Bytes of parameters that each shard owns."""
    return [sum(s.numel * ITEM_BYTES[parts.specs[s.tensor].dtype] for s in shard) for shard in parts.shards]


@given(tensors=jobs(), num_shards=st.integers(1, 9))
def test_every_element_is_owned_once_and_in_order(tensors: list[TensorSpec], num_shards: int) -> None:
    parts = partition(tensors, num_shards)
    for spec in tensors:
        spans = [span for shard in parts.shards for span in shard if span.tensor == spec.name]
        assert [i for span in spans for i in range(span.start, span.stop)] == list(range(spec.numel))
        assert spans, "a zero-size tensor has an owner too"


@given(tensors=jobs(), num_shards=st.integers(1, 9))
def test_a_tensor_has_at_most_one_span_on_a_shard(tensors: list[TensorSpec], num_shards: int) -> None:
    for spans in partition(tensors, num_shards).shards:
        assert len({span.tensor for span in spans}) == len(spans)


@given(tensors=jobs(), num_shards=st.integers(1, 9))
def test_the_largest_shard_is_at_most_a_block_above_the_mean(
    tensors: list[TensorSpec], num_shards: int
) -> None:
    parts = partition(tensors, num_shards)
    mean = sum(spec.nbytes for spec in tensors) / num_shards
    assert max(sizes(parts)) <= mean + BLOCK_BYTES


def test_large_tensors_are_split_within_one_percent() -> None:
    tensors = [TensorSpec("a", (3000, 1000)), TensorSpec("b", (7,)), TensorSpec("c", (5_000_001,))]
    for num_shards in (2, 3, 7, 16):
        parts = partition(tensors, num_shards)
        assert max(sizes(parts)) <= 1.01 * sum(sizes(parts)) / num_shards


def test_a_cut_keeps_short_rows_whole() -> None:
    for shard in partition([TensorSpec("table", (1001, 48))], 7).shards:
        for span in shard:
            assert span.start % 48 == 0
            assert span.stop % 48 == 0


@pytest.mark.parametrize(
    ("tensors", "num_shards", "expected"),
    [
        ([TensorSpec("w", (4,))], 1, ((Span("w", 0, 4),),)),
        ([TensorSpec("w", (4,))], 2, ((Span("w", 0, 2),), (Span("w", 2, 4),))),
        ([TensorSpec("s", ())], 2, ((), (Span("s", 0, 1),))),
        ([TensorSpec("z", (0, 3))], 2, ((Span("z", 0, 0),), ())),
        ([], 2, ((), ())),
    ],
    ids=["one shard", "halves", "scalar", "zero size", "no tensors"],
)
def test_small_jobs(tensors: list[TensorSpec], num_shards: int, expected: object) -> None:
    assert partition(tensors, num_shards).shards == expected


def test_it_is_deterministic() -> None:
    tensors = [TensorSpec(f"t{i}", (i * 37 % 11, 5)) for i in range(30)]
    assert partition(tensors, 4) == partition(list(tensors), 4)


@given(tensors=jobs(), num_shards=st.integers(1, 5))
def test_the_layout_has_no_gap_and_no_overlap(tensors: list[TensorSpec], num_shards: int) -> None:
    parts = partition(tensors, num_shards)
    for shard in range(num_shards):
        ends = dict.fromkeys(ITEM_BYTES, 0)
        for span, dtype, offset in parts.layout(shard):
            assert offset == ends[dtype]
            ends[dtype] += span.numel


@pytest.mark.parametrize(
    ("tensors", "num_shards", "field"),
    [
        ([], 0, "num_shards"),
        ([], -1, "num_shards"),
        ([TensorSpec("w", ()), TensorSpec("w", (1,))], 1, "tensors"),
    ],
)
def test_bad_input_names_the_field(tensors: list[TensorSpec], num_shards: int, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        partition(tensors, num_shards)
    assert caught.value.field == field


def test_an_unknown_tensor_is_named_with_those_there_are() -> None:
    parts: Partition = partition([TensorSpec("weight", (2,))], 1)
    with pytest.raises(NotFound, match=r"no tensor 'weigh_t'.*it has weight"):
        parts.spec("weigh_t")


@pytest.mark.parametrize(
    ("name", "shape", "dtype"), [("", (1,), "float32"), ("w", (-1,), "float32"), ("w", (1,), "int8")]
)
def test_bad_tensors_are_refused(name: str, shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(InvalidArgument):
        TensorSpec(name, shape, dtype)
