"""Who owns which elements: a job's tensors cut into one run of spans a shard.

The tensors are laid end to end and cut at equal byte counts. A cut moves to the nearest row boundary of the tensor it
falls in where a row is at most `BLOCK_BYTES`, so that sparse rows stay whole, and to the nearest element otherwise. So
the largest shard is at most one block above the mean.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from adamserve.errors import InvalidArgument, NotFound
from adamserve.values import ITEM_BYTES, Span, TensorSpec

BLOCK_BYTES = 1 << 16
"""The largest row that a cut keeps whole, in bytes."""


@dataclass(frozen=True)
class Partition:
    """The spans of each shard, in buffer order; every element of every tensor is in exactly one span."""

    tensors: tuple[TensorSpec, ...]
    shards: tuple[tuple[Span, ...], ...]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        return {spec.name: spec for spec in self.tensors}

    def spec(self, name: str) -> TensorSpec:
        """The tensor of that name.

        Raises:
            NotFound: the job has no such tensor.
        """
        try:
            return self.specs[name]
        except KeyError:
            known = ", ".join(list(self.specs)[:5])
            more = f" and {len(self.specs) - 5} more" if len(self.specs) > 5 else ""
            raise NotFound(
                f"the job has no tensor {name!r}", field=name, fix=f"it has {known}{more}"
            ) from None

    def layout(self, shard: int) -> Iterator[tuple[Span, str, int]]:
        """A shard's spans, each with the dtype of the flat buffer that it lies in and its offset there."""
        offsets = dict.fromkeys(ITEM_BYTES, 0)
        for span in self.shards[shard]:
            dtype = self.specs[span.tensor].dtype
            yield span, dtype, offsets[dtype]
            offsets[dtype] += span.numel


def partition(tensors: Sequence[TensorSpec], num_shards: int) -> Partition:
    """Cut tensors into `num_shards` runs of nearly equal bytes. Deterministic.

    Args:
        tensors: of any rank, zero-size and scalar ones included; names differ.
        num_shards: at least 1. More shards than elements leave some shards empty.

    Raises:
        InvalidArgument: `num_shards` is below 1, or two tensors share a name.
    """
    if not num_shards >= 1:
        raise InvalidArgument(f"must be at least 1, got {num_shards}", field="num_shards")
    twice = sorted(name for name, count in Counter(spec.name for spec in tensors).items() if count > 1)
    if twice:
        raise InvalidArgument(
            f"two tensors are called {twice[0]!r}", field="tensors", fix="give each its own name"
        )
    ends = list(accumulate(spec.nbytes for spec in tensors))
    total = ends[-1] if ends else 0
    cuts = [_cut(tensors, ends, total * i // num_shards) for i in range(1, num_shards)]
    edges = [(0, 0), *cuts, (len(tensors), 0)]
    shards = [tuple(_between(tensors, a, b)) for a, b in pairwise(edges)]
    return Partition(tuple(tensors), tuple(shards))


def _cut(tensors: Sequence[TensorSpec], ends: Sequence[int], position: int) -> tuple[int, int]:
    """The (tensor, element) nearest to a byte position at which a cut may fall."""
    i = bisect_right(ends, position)
    if i == len(tensors):
        return (i, 0)
    spec = tensors[i]
    item = ITEM_BYTES[spec.dtype]
    grain = spec.width if spec.width * item <= BLOCK_BYTES else 1
    into = (position - (ends[i] - spec.nbytes)) // item
    element = min((into + grain // 2) // grain * grain, spec.numel)
    return (i, element) if element < spec.numel else (i + 1, 0)


def _between(tensors: Sequence[TensorSpec], a: tuple[int, int], b: tuple[int, int]) -> Iterable[Span]:
    """The spans from edge `a` (included) to edge `b` (not)."""
    for i in range(a[0], min(b[0] + 1, len(tensors))):
        spec = tensors[i]
        start = a[1] if i == a[0] else 0
        stop = b[1] if i == b[0] else spec.numel
        if start < stop or (spec.numel == 0 and i < b[0]):
            yield Span(spec.name, start, stop)
