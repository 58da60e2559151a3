"""A shard's numbers: flat buffers of parameters and slots, cut into pieces, and the updates that change them.

There is one flat buffer of parameters and one per slot for each dtype, so a whole-tensor push runs straight from the
arrived gradient into those buffers: no staging.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adamserve import optim
from adamserve.errors import InvalidArgument, NotFound
from adamserve.optim.rows import Rows
from adamserve.optim.rows import prepare as prepare_rows
from adamserve.shard import sparse
from adamserve.shard.geometry import Partition
from adamserve.shard.gradients import Loaded, RowGradient, corrected
from adamserve.shard.sampling import Probe
from adamserve.values import Array, Constants, Segment, ShardState, Span, TensorSpec

RULES_KEPT = 4096
"""Rules with changed constants that a shard remembers."""

Room = Callable[[int], Array]
"""Makes memory for so many uint16."""

Point = Mapping[str, torch.Tensor]
"""Parameters as one flat tensor a dtype."""


@dataclass(slots=True)
class _Piece:
    """A segment in the buffers: views of its parameters and slots, and its own update count.

    `table` is there while some of its rows may have missed updates.
    """

    span: Span
    updates: int
    w: torch.Tensor
    slots: dict[str, torch.Tensor]
    table: Rows | None = None

    @property
    def arrays(self) -> dict[str, torch.Tensor]:
        """Parameters and slots by name."""
        return {"w": self.w, **self.slots}

    def catch_up(self) -> None:
        """Bring all rows up to date."""
        if self.table is not None:
            self.table.catch_up()
            self.table = None


class Store:
    """Parameters and slots of one shard. Not thread-safe, but for `prepare` and `span`.

    Args:
        partition: where every element of the job lives.
        state: the values to start from, fresh (only "w", no slots) or from a checkpoint.
        rule: the update rule.
        tensor_rules: by tensor, a rule other than `rule`, as `optim.rules_of` checks them.
        exact: a row without a gradient changes as a zero gradient would change it; False leaves it as it is.
        device: where the buffers live, as torch names it.

    Attributes:
        spans: the shard's, by tensor.
        kernels: how the rule runs, one a dtype.
        probe: looks at an update where one is asked for.
    """

    def __init__(
        self,
        partition: Partition,
        state: ShardState,
        rule: optim.Rule,
        tensor_rules: Mapping[str, optim.Rule],
        *,
        exact: bool,
        device: str,
    ) -> None:
        self.rule = rule
        self.device = torch.device(device)
        self.spans = {span.tensor: span for span in partition.shards[state.shard]}
        self._partition = partition
        self._index = state.shard
        self._tensor_rules = dict(tensor_rules)
        self.constants: dict[str, Mapping[str, float]] = dict(state.constants)
        self._with: dict[tuple[optim.Rule, tuple[tuple[str, float], ...]], optim.Rule] = {}
        self._exact = exact
        self._layout = {span.tensor: (dtype, at) for span, dtype, at in partition.layout(state.shard)}
        self._buffers: dict[str, dict[str, torch.Tensor]] = {}
        self._pieces: dict[str, list[_Piece]] = {name: [] for name in self.spans}
        self._load(state)
        self.probe = Probe(self.spans.values(), self._view)
        self._prepared = {(torch.float32, False)}
        """Kernels made for float32 parameters: the gradients' dtype, and whether with a bfloat16 copy."""
        self.kernels = [
            optim.prepare(rule, getattr(torch, dtype), device=self.device.type) for dtype in self._buffers
        ]
        for name in self.spans:
            spec = partition.specs[name]
            if spec.stride != 1 and self.device.type == "cpu":
                prepare_rows(self._rule_of(name), getattr(torch, spec.dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of parameters and slots."""
        return sum(b.nbytes for buffers in self._buffers.values() for b in buffers.values())

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters alone."""
        return sum(buffers["w"].nbytes for buffers in self._buffers.values())

    def span(self, name: str) -> tuple[Span, TensorSpec]:
        """The shard's span of a tensor, and the tensor.

        Raises:
            NotFound: the job has no such tensor, or the shard owns no part of it.
        """
        spec = self._partition.spec(name)
        if name not in self.spans:
            raise NotFound(
                f"shard {self._index} owns no part of {name!r}",
                field=name,
                fix="send each shard its own spans",
            )
        return self.spans[name], spec

    def prepare(self, gradients: Mapping[str, Loaded], *, copied: bool) -> None:
        """Make the kernels that these gradients need now, rather than while others wait for the writer."""
        dtypes = {g.dtype for g in gradients.values() if not isinstance(g, RowGradient)} - {torch.float64}
        if copied and dtypes:
            dtypes.add(torch.float32)  # a mean's
        for dtype in dtypes:
            if (dtype, copied) not in self._prepared:
                for rule in {self.rule, *self._tensor_rules.values()}:
                    optim.prepare(rule, torch.float32, [dtype], self.device, narrow=copied)
                self._prepared.add((dtype, copied))

    # ---- reading

    def point(self, *, training: bool) -> dict[str, torch.Tensor]:
        """The parameters, or the point where gradients are to be taken; views of the buffers where they are that."""
        self.catch_up()
        point = {}
        for dtype, buffers in self._buffers.items():
            slots = {slot: buffer for slot, buffer in buffers.items() if slot != "w"}
            point[dtype] = self.rule.lookahead(buffers["w"], slots) if training else buffers["w"]
        if training and self.rule.has_lookahead:
            for name in (name for name in self.constants if self._rule_of(name) != self.rule):
                dtype, at = self._layout[name]
                point[dtype][at : at + self.spans[name].numel] = self._whole(name, training=True)
        return point

    def read_rows(self, wanted: Mapping[str, Array], *, training: bool) -> dict[str, Array]:
        """As `Shard.read_rows`."""
        wanted = {name: self._own_rows(name, rows) for name, rows in wanted.items()}
        return {
            name: (
                self._rows_of(name, wanted[name], training=training)
                if name in wanted
                else self._whole(name, training=training)
            ).numpy()
            for name in self.spans
        }

    def _whole(self, name: str, *, training: bool) -> torch.Tensor:
        """A copy of the shard's span of a tensor, 1-D."""
        span, spec = self.span(name)
        rule, flat = self._rule_of(name), torch.empty(span.numel, dtype=getattr(torch, spec.dtype))
        for piece in self._pieces[name]:
            piece.catch_up()
            at = slice(piece.span.start - span.start, piece.span.stop - span.start)
            flat[at] = rule.lookahead(piece.w, piece.slots) if training else piece.w
        return flat

    def _rows_of(self, name: str, wanted: Array, *, training: bool) -> torch.Tensor:
        """A copy of some rows of a tensor, of shape (n, width)."""
        _, spec = self.span(name)
        rule, values = (
            self._rule_of(name),
            torch.empty((len(wanted), spec.width), dtype=getattr(torch, spec.dtype)),
        )
        ahead = training and rule.has_lookahead
        for piece in self._pieces[name]:
            first, _ = sparse.rows_of(piece.span, spec.width)
            chosen = sparse.within(wanted, piece.span, spec.width)
            rows = wanted[chosen] - first
            if piece.table is not None:
                piece.table.catch_up(rows)
            index = torch.from_numpy(rows).to(self.device)
            arrays = {
                slot: a.view(-1, spec.width).index_select(0, index)
                for slot, a in piece.arrays.items()
                if slot == "w" or ahead
            }
            w = arrays.pop("w")
            values[chosen] = (rule.lookahead(w, arrays) if ahead else w).cpu()
        return values

    def state(self) -> tuple[tuple[Segment, ...], dict[str, dict[str, Array]]]:
        """Segments and arrays as `ShardState` has them; on the CPU views of the buffers."""
        self.catch_up()
        slots = ("w", *self.rule.slot_names)
        arrays: dict[str, dict[str, Array]] = {slot: {} for slot in slots}
        for name, span in self.spans.items():
            dtype, at = self._layout[name]
            for slot in slots:
                arrays[slot][name] = self._buffers[dtype][slot][at : at + span.numel].cpu().numpy()
        segments = tuple(
            Segment(piece.span.tensor, piece.span.start, piece.span.stop, piece.updates)
            for pieces in self._pieces.values()
            for piece in pieces
        )
        return segments, arrays

    # ---- updating

    def step(
        self,
        gradients: Mapping[str, Loaded],
        constants: Constants,
        lr_scale: float,
        room: Room | None,
    ) -> Array | None:
        """One update of every tensor that has a gradient.

        Args:
            gradients: by tensor.
            constants: by tensor, those in place of its rule's own.
            lr_scale: factor of every rate.
            room: asks for a copy of the new parameters in bfloat16, in memory from it.

        Returns:
            The bits of that copy, laid out as the buffer is, of the point where gradients are to be taken. None where
            it was not asked for, or would take a pass of its own: not on the CPU, or not all was float32 and dense.
        """
        if self.probe.wanted:
            self._begin_look(gradients)
        bits = None if room is None or not self._writes_all(gradients) else room(self.parameter_bytes // 4)
        copy = None if bits is None else torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
        for name, gradient in gradients.items():
            rule = self._use(name, constants[name])
            lr = constants[name].get("lr")
            for piece in self._pieces[name]:
                if isinstance(gradient, RowGradient):
                    self._step_rows(rule, piece, gradient, lr, lr_scale)
                else:
                    self._step_dense(rule, piece, gradient, lr, lr_scale, copy)
                piece.updates += 1
        self.probe.end()
        return bits

    def assign(
        self, slot: str, values: Mapping[str, Loaded], updates: Mapping[str, int], constants: Constants
    ) -> None:
        """Assign values to parameters ("w") or a slot, and update counts and constants to tensors."""
        for name in constants.keys() & self.spans.keys():
            self._use(name, constants[name])
        for name in {**values, **updates}:
            value = values.get(name)
            for piece in self._pieces.get(name, ()):
                if isinstance(value, RowGradient):
                    width = self._partition.specs[name].width
                    part = sparse.within(value.rows, piece.span, width)
                    rows = value.rows[part] - sparse.rows_of(piece.span, width)[0]
                    if piece.table is not None:
                        piece.table.catch_up(rows)
                    index = torch.from_numpy(rows).to(self.device)
                    piece.arrays[slot].view(-1, width)[index] = value.values[part]
                elif value is not None:
                    piece.catch_up()
                    begin = piece.span.start - self.spans[name].start
                    piece.arrays[slot].copy_(value[begin : begin + piece.span.numel])
                if name in updates:
                    piece.catch_up()
                    piece.updates = updates[name]

    def rule_with(self, name: str, constants: Mapping[str, float]) -> optim.Rule:
        """A tensor's rule with some constants changed, except for the rate. Thread-safe.

        Raises:
            NotFound: there is no such tensor.
            InvalidArgument: no such constant, one out of its range, or one that would need other slots.
        """
        self._partition.spec(name)
        rule = self._tensor_rules.get(name, self.rule)
        key = rule, tuple((constant, value) for constant, value in constants.items() if constant != "lr")
        if not key[1]:
            return rule
        changed = self._with.get(key)
        if changed is None:
            if len(self._with) >= RULES_KEPT:
                self._with = {}
            changed = self._with[key] = optim.with_constants(rule, dict(key[1]))
        return changed

    def compensated(
        self, gradients: Mapping[str, Loaded], pulled: Point, weight: float
    ) -> Mapping[str, Loaded]:
        """g + weight*g*g*(w - w_pulled) of every gradient; see `consistency.Async`."""
        point = self.point(training=True)
        compensated: dict[str, Any] = {}
        for name, gradient in gradients.items():
            span, spec = self.span(name)
            dtype, at = self._layout[name]
            now, then = (flat[dtype][at : at + span.numel] for flat in (point, pulled))
            if isinstance(gradient, RowGradient):
                own = torch.from_numpy(gradient.rows - sparse.rows_of(span, spec.width)[0]).to(self.device)
                now, then = (whole.view(-1, spec.width)[own] for whole in (now, then))
                values = corrected(gradient.values, now - then, weight)
                compensated[name] = RowGradient(gradient.rows, values)
            else:
                compensated[name] = corrected(gradient, now - then, weight)
        return compensated

    def catch_up(self) -> None:
        """Bring every row up to date."""
        for pieces in self._pieces.values():
            for piece in pieces:
                piece.catch_up()

    # ---- inside

    def _step_dense(
        self,
        rule: optim.Rule,
        piece: _Piece,
        gradient: torch.Tensor,
        lr: float | None,
        lr_scale: float,
        copy: torch.Tensor | None,
    ) -> None:
        piece.catch_up()
        begin = piece.span.start - self.spans[piece.span.tensor].start
        part = gradient[begin : begin + piece.span.numel]
        at, t = piece.w.storage_offset(), piece.updates + 1
        beside = None if copy is None else copy[at : at + piece.span.numel]
        rule.step_(piece.w, part, piece.slots, t, lr=lr, lr_scale=lr_scale, narrow=beside)
        self.probe.ran(rule, t, lr, lr_scale)

    def _step_rows(
        self, rule: optim.Rule, piece: _Piece, gradient: RowGradient, lr: float | None, lr_scale: float
    ) -> None:
        width = self._partition.specs[piece.span.tensor].width
        if piece.table is None:
            arrays = {slot: a.view(-1, width) for slot, a in piece.arrays.items()}
            piece.table = Rows(rule, arrays, piece.updates, exact=self._exact)
        part = sparse.within(gradient.rows, piece.span, width)
        rows = gradient.rows[part] - sparse.rows_of(piece.span, width)[0]
        piece.table.step_(rows, gradient.values[part], lr=lr, lr_scale=lr_scale)

    def _writes_all(self, gradients: Mapping[str, Loaded]) -> bool:
        """Whether one float32 buffer is all there is, and a dense update writes every element of it."""
        dense = {name for name, gradient in gradients.items() if isinstance(gradient, torch.Tensor)}
        return (
            self.device.type == "cpu"
            and self._buffers.keys() == {"float32"}
            and all(name in dense or not span.numel for name, span in self.spans.items())
        )

    def _begin_look(self, gradients: Mapping[str, Loaded]) -> None:
        self.probe.begin(
            {name: g for name, g in gradients.items() if not isinstance(g, RowGradient)},
            {name: g.values for name, g in gradients.items() if isinstance(g, RowGradient)},
            [name for name in gradients if any(piece.table is not None for piece in self._pieces[name])],
        )

    def _rule_of(self, name: str) -> optim.Rule:
        """The rule with the constants that a tensor's last update had."""
        return self.rule_with(name, self.constants.get(name, {}))

    def _use(self, name: str, constants: Mapping[str, float]) -> optim.Rule:
        """The rule for an update with these constants; rows that missed updates of other constants catch up first."""
        rule = self.rule_with(name, constants)
        if rule != self._rule_of(name):
            for piece in self._pieces[name]:
                piece.catch_up()
        if constants:
            self.constants[name] = constants
        else:
            self.constants.pop(name, None)
        return rule

    def _own_rows(self, name: str, rows: Array) -> Array:
        span, spec = self.span(name)
        sparse.check_table(spec)
        rows = sparse.check_indices(spec, rows, *sparse.rows_of(span, spec.width))
        if not (rows[1:] > rows[:-1]).all():  # so that an answer is never larger than the table
            raise InvalidArgument(
                "row numbers do not increase", field=name, fix="name each row once, in order"
            )
        return rows

    def _view(self, tensor: str, start: int, stop: int) -> torch.Tensor:
        dtype, at = self._layout[tensor]
        return self._buffers[dtype]["w"][at + start : at + stop]

    def _load(self, state: ShardState) -> None:
        """Fill the buffers, and cut them into pieces by update count."""
        sizes: dict[str, int] = {}
        segments: dict[str, list[Segment]] = {}
        for segment in state.segments:
            segments.setdefault(segment.tensor, []).append(segment)
        for name, (dtype, at) in self._layout.items():
            sizes[dtype] = at + self.spans[name].numel
        for dtype, size in sizes.items():
            w = torch.zeros(size, dtype=getattr(torch, dtype), device=self.device)
            self._buffers[dtype] = {"w": w, **self.rule.init(w)}
        for name, (dtype, at) in self._layout.items():
            buffers, span = self._buffers[dtype], self.spans[name]
            for slot, tensors in state.arrays.items():
                values = torch.from_numpy(np.array(tensors[name], dtype=dtype))
                buffers[slot][at : at + span.numel].copy_(values.reshape(-1))
            for cut in segments.get(name) or [Segment(name, span.start, span.stop, 0)]:
                a, b = at + cut.start - span.start, at + cut.stop - span.start
                views = {slot: buffer[a:b] for slot, buffer in buffers.items()}
                piece = _Piece(Span(name, cut.start, cut.stop), cut.updates, views.pop("w"), views)
                self._pieces[name].append(piece)
