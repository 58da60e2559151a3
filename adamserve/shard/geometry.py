"""Who owns which elements: a job's tensors cut into one run of spans a shard.

The tensors are laid end to end and cut at equal byte counts. A cut moves to the nearest row boundary of the tensor it
falls in where a row is at most `BLOCK_BYTES`, so that sparse rows stay whole, and to the nearest element otherwise. So
the largest shard is at most one block above the mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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
        """The tensor of that name; raises NotFound if the job has none."""
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

    More shards than elements leave some shards empty.

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
    total = sum(spec.nbytes for spec in tensors)
    cuts = [total * i // num_shards for i in range(num_shards - 1, 0, -1)]  # in bytes, the next one last
    shards: list[list[Span]] = [[]]
    begin = 0
    for spec in tensors:
        item, start, end = ITEM_BYTES[spec.dtype], 0, begin + spec.nbytes
        grain = spec.width if spec.width * item <= BLOCK_BYTES else 1
        while cuts and cuts[-1] < end:
            nearest = ((cuts.pop() - begin) // item + grain // 2) // grain * grain
            stop = min(nearest, spec.numel)
            if start < stop:
                shards[-1].append(Span(spec.name, start, stop))
            shards.append([])
            start = stop
        if start < spec.numel or not spec.numel:
            shards[-1].append(Span(spec.name, start, spec.numel))
        begin = end
    shards += [[] for _ in cuts]  # where there is not one byte
    return Partition(tuple(tensors), tuple(map(tuple, shards)))
