"""Replays a schedule on shards in this process: the one place here that knows the package's interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adamserve import optim
from adamserve.shard import consistency, sparse
from adamserve.shard.geometry import Partition, partition
from adamserve.shard.shard import Shard
from adamserve.values import Array, Gradient, Push, ShardState, SparseRows, Stamp, TensorSpec
from tests.bits import schedule


class Replay:
    """A job's shards, and its pushers with what they know: their seqs, and the stamps that they pulled at.

    Args:
        case: the job; its steps are not replayed until `run`.
        states: one for each shard, as a checkpoint gives them; None starts at the schedule's initial values.
    """

    def __init__(self, case: schedule.Case, states: Sequence[ShardState] | None = None) -> None:
        specs = [TensorSpec(t.name, t.shape, t.dtype, t.stride) for t in case.tensors]
        self.parts = partition(specs, schedule.SHARDS if states is None else len(states))
        states = fresh(self.parts, schedule.initial(case.tensors)) if states is None else states
        rule, tensor_rules = optim.rules_of(case.rule, case.tensor_rules)
        self.shards = [
            Shard(
                partition=self.parts,
                state=state,
                rule=rule,
                tensor_rules=tensor_rules,
                consistency=consistency.from_dict(case.mode),
                exact=case.sparse == "exact",
            )
            for state in states
        ]
        self._seqs: dict[str, int] = {}
        self._pulled: dict[str, list[Stamp]] = {}

    def join(self, pusher: str) -> int:
        """Let a pusher join; returns the seq that it goes on after."""
        last = max(shard.join(pusher, lease_s=1e6).last_seq for shard in self.shards)
        for shard in self.shards:
            shard.join(pusher, lease_s=1e6, last_seq=last)
        self._seqs[pusher] = last
        self._pulled[pusher] = [shard.stamp for shard in self.shards]
        return last

    def run(self, steps: Sequence[schedule.Step]) -> None:
        """Do the steps, on all shards."""
        for step in steps:
            if isinstance(step, schedule.Pull):
                self._pull(step.pusher)
            else:
                self._push(step)

    def digest(self, *, clocks: bool = True) -> str:
        """Of the whole state; without the clocks it does not depend on the number of shards."""
        pieces: dict[str, dict[str, list[Array]]] = {}
        updates: dict[str, list[int]] = {spec.name: [] for spec in self.parts.tensors}
        for shard in self.shards:
            state = shard.state()
            pulled = shard.read(training=True)
            views = {
                span.tensor: pulled[dtype][offset : offset + span.numel]
                for span, dtype, offset in self.parts.layout(shard.index)
            }
            for slot, tensors in {**state.arrays, "pulled": views}.items():
                for tensor, values in tensors.items():
                    pieces.setdefault(slot, {}).setdefault(tensor, []).append(values)
            for segment in state.segments:
                updates[segment.tensor] += [segment.updates] * (segment.stop - segment.start)
        arrays = {
            slot: {tensor: np.concatenate(parts) for tensor, parts in tensors.items()}
            for slot, tensors in pieces.items()
        }
        return schedule.digest(
            [shard.stamp.clock for shard in self.shards] if clocks else [], updates, arrays
        )

    def _pull(self, pusher: str) -> None:
        for shard in self.shards:
            shard.note_pull(pusher)
        self._pulled[pusher] = [shard.stamp for shard in self.shards]

    def _push(self, step: schedule.Push) -> None:
        self._seqs[step.pusher] += 1
        whole = {name: self._placed(name, gradient) for name, gradient in step.gradients.items()}
        for shard, pulled in zip(self.shards, self._pulled[step.pusher], strict=True):
            own = {
                span.tensor: sparse.part(whole[span.tensor], span)
                for span in self.parts.shards[shard.index]
                if span.tensor in whole
            }
            push = Push(step.pusher, self._seqs[step.pusher], pulled, own, step.lr, step.rates)
            shard.offer(shard.check(push))

    def _placed(self, name: str, gradient: Array | schedule.Rows) -> Gradient:
        """A gradient as a client sends it: flat, its rows where the shards keep them."""
        spec = self.parts.specs[name]
        if isinstance(gradient, schedule.Rows):
            return sparse.for_shards(spec, SparseRows(gradient.indices, gradient.values))
        return sparse.to_places(spec, gradient)


def fresh(parts: Partition, values: Mapping[str, Array]) -> list[ShardState]:
    """The states of shards that have had no push."""
    flat = {spec.name: sparse.to_places(spec, values[spec.name]) for spec in parts.tensors}
    return [
        ShardState(shard, Stamp(1, 0), (), {"w": {s.tensor: flat[s.tensor][s.start : s.stop] for s in spans}})
        for shard, spans in enumerate(parts.shards)
    ]
