"""A shard's numbers: flat buffers of parameters and slots, cut into pieces, and the updates that change them.

There is one flat buffer of parameters and one per slot for each dtype, so a whole-tensor push runs straight from the
arrived gradient into those buffers: no staging.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

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

Room = Callable[[int], Array]
"""Makes memory for so many elements: float32, or the bits of bfloat16 as uint16."""

Point = Mapping[str, torch.Tensor]
"""Parameters as one flat tensor a dtype."""


@dataclass(slots=True)
class _Piece:
    """A segment in the buffers; `table` is there while some of its rows may have missed updates."""

    span: Span
    rule: optim.Rule
    updates: int
    w: torch.Tensor
    slots: dict[str, torch.Tensor]
    table: Rows | None = None

    def catch_up(self) -> None:
        """Bring all rows up to date."""
        if self.table is not None:
            self.table.catch_up()
            self.table = None

    def by_rows(self, width: int, *, exact: bool) -> Rows:
        """The piece as a table whose rows may miss updates from now on."""
        if self.table is None:
            arrays = {slot: a.view(-1, width) for slot, a in {"w": self.w, **self.slots}.items()}
            self.table = Rows(self.rule, arrays, self.updates, exact=exact)
        return self.table

    def point(self, *, training: bool) -> torch.Tensor:
        """As `Store.point`, of the piece."""
        self.catch_up()
        return self.rule.lookahead(self.w, self.slots) if training else self.w

    def rows(self, rows: Array, width: int, *, training: bool) -> torch.Tensor:
        """A copy of some rows, counted from the piece's first, of shape (n, width)."""
        if self.table is not None:
            self.table.catch_up(rows)
        index = torch.from_numpy(rows).to(self.w.device)
        w = self.w.view(-1, width).index_select(0, index)
        if not (training and self.rule.has_lookahead):
            return w
        slots = {slot: a.view(-1, width).index_select(0, index) for slot, a in self.slots.items()}
        return self.rule.lookahead(w, slots)


class Store:
    """Parameters and slots of one shard. Not thread-safe, but for `prepare` and `span`.

    Args: as for `Shard`.

    Attributes:
        spans: the shard's, by tensor.
        parameter_bytes, state_bytes: of the parameters alone, and with their slots.
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
        self.constants: dict[str, Mapping[str, float]] = dict(state.constants)
        self._own_rules = dict.fromkeys(self.spans, rule) | dict(tensor_rules)
        self._exact = exact
        self._layout = {span.tensor: (dtype, at) for span, dtype, at in partition.layout(state.shard)}
        self._w: dict[str, torch.Tensor] = {}
        self._slots: dict[str, dict[str, torch.Tensor]] = {}
        self._pieces: dict[str, list[_Piece]] = {name: [] for name in self.spans}
        self._load(state)
        self.parameter_bytes = sum(w.nbytes for w in self._w.values())
        slots = (slot for slots in self._slots.values() for slot in slots.values())
        self.state_bytes = self.parameter_bytes + sum(slot.nbytes for slot in slots)
        self.probe = Probe(self.spans.values(), self._view)
        self._prepared = {(torch.float32, "")}
        """Kernels made for float32 parameters: the gradients' dtype, and that of a copy."""
        self.kernels = [
            optim.prepare(rule, getattr(torch, dtype), device=self.device.type) for dtype in self._w
        ]
        for name in self.spans:
            spec = partition.specs[name]
            if spec.stride != 1 and self.device.type == "cpu":
                prepare_rows(tensor_rules.get(name, rule), getattr(torch, spec.dtype))

    def span(self, name: str) -> tuple[Span, TensorSpec]:
        """The shard's span of a tensor, and the tensor; raises NotFound if the shard owns no part of such a tensor."""
        spec = self._partition.spec(name)
        if name not in self.spans:
            raise NotFound(
                f"shard {self._index} owns no part of {name!r}",
                field=name,
                fix="send each shard its own spans",
            )
        return self.spans[name], spec

    def prepare(self, gradients: Mapping[str, Loaded], *, copied: str) -> None:
        """Make the kernels that these gradients need now, rather than while others wait for the writer."""
        dtypes = {g.dtype for g in gradients.values() if not isinstance(g, RowGradient)} - {torch.float64}
        if copied and dtypes:
            dtypes.add(torch.float32)  # a mean's
        copy = getattr(torch, copied) if copied else None
        for dtype in dtypes:
            if (dtype, copied) not in self._prepared:
                for rule in set(self._own_rules.values()):
                    optim.prepare(rule, torch.float32, [dtype], self.device, copy=copy)
                self._prepared.add((dtype, copied))

    # ---- reading

    def point(self, *, training: bool) -> dict[str, torch.Tensor]:
        """The parameters, or the point where gradients are to be taken; views of the buffers where they are that."""
        self.catch_up()
        if not training:
            return self._w
        point = {dtype: self.rule.lookahead(w, self._slots[dtype]) for dtype, w in self._w.items()}
        for pieces in self._pieces.values() if self.rule.has_lookahead else ():
            for piece in pieces:
                if piece.rule != self.rule:
                    dtype, at = self._layout[piece.span.tensor]
                    at += piece.span.start - self.spans[piece.span.tensor].start
                    point[dtype][at : at + piece.span.numel] = piece.point(training=True)
        return point

    def read_rows(self, wanted: Mapping[str, Array], *, training: bool = True) -> dict[str, Array]:
        """Some rows of some tensors, and the other tensors whole. At the cost of what is read.

        Args:
            wanted: by tensor, increasing row numbers in the whole tensor.
            training: as for `point`.

        Returns:
            Copies, by tensor: values of shape (n, width) for those in `wanted`, and 1-D the shard's span for others.

        Raises:
            NotFound, InvalidArgument: a tensor is not this shard's, or a row is not; nothing has changed.
        """
        wanted = {name: self._own_rows(name, rows) for name, rows in wanted.items()}
        read: dict[str, Array] = {}
        for name, span in self.spans.items():
            spec, rows = self._partition.specs[name], wanted.get(name)
            shape = (span.numel,) if rows is None else (len(rows), spec.width)
            values = torch.empty(shape, dtype=getattr(torch, spec.dtype))
            for piece in self._pieces[name]:
                if rows is None:
                    at = slice(piece.span.start - span.start, piece.span.stop - span.start)
                    values[at] = piece.point(training=training)
                else:
                    at = sparse.within(rows, piece.span, spec.width)
                    own = rows[at] - sparse.rows_of(piece.span, spec.width)[0]
                    values[at] = piece.rows(own, spec.width, training=training).cpu()
            read[name] = values.numpy()
        return read

    def state(self) -> tuple[tuple[Segment, ...], dict[str, dict[str, Array]]]:
        """Segments and arrays as `ShardState` has them; on the CPU views of the buffers."""
        self.catch_up()
        arrays: dict[str, dict[str, Array]] = {slot: {} for slot in ("w", *self.rule.slot_names)}
        for name, span in self.spans.items():
            dtype, at = self._layout[name]
            for slot, buffer in {"w": self._w[dtype], **self._slots[dtype]}.items():
                arrays[slot][name] = buffer[at : at + span.numel].cpu().numpy()
        segments = tuple(
            Segment(piece.span.tensor, piece.span.start, piece.span.stop, piece.updates)
            for pieces in self._pieces.values()
            for piece in pieces
        )
        return segments, arrays

    # ---- updating

    def step(
        self, gradients: Mapping[str, Loaded], constants: Constants, lr_scale: float, room: Room | None
    ) -> Array | None:
        """One update of every tensor that has a gradient.

        Args:
            gradients: by tensor.
            constants: by tensor, those in place of its rule's own.
            lr_scale: factor of every rate.
            room: asks for a copy of the new parameters, in memory from it: float32, or bfloat16 as uint16.

        Returns:
            That copy, laid out as the buffer is, of the point where gradients are to be taken. None where
            it was not asked for, or would take a pass of its own: not on the CPU, or not all was float32 and dense.
        """
        if self.probe.wanted:
            behind = [
                name for name in gradients if any(piece.table is not None for piece in self._pieces[name])
            ]
            self.probe.begin(gradients, behind)
        bits = None if room is None or not self._writes_all(gradients) else room(self.parameter_bytes // 4)
        copy = None if bits is None else _tensor(bits)
        for name, gradient in gradients.items():
            self._use(name, constants[name])
            lr, first = constants[name].get("lr"), self.spans[name].start
            for piece in self._pieces[name]:
                if isinstance(gradient, RowGradient):
                    width = self._partition.specs[name].width
                    own = sparse.within(gradient.rows, piece.span, width)
                    rows = gradient.rows[own] - sparse.rows_of(piece.span, width)[0]
                    table = piece.by_rows(width, exact=self._exact)
                    table.step_(rows, gradient.values[own], lr=lr, lr_scale=lr_scale)
                else:
                    piece.catch_up()
                    part = gradient[piece.span.start - first : piece.span.stop - first]
                    at, t = piece.w.storage_offset(), piece.updates + 1
                    beside = None if copy is None else copy[at : at + len(part)]
                    piece.rule.step_(piece.w, part, piece.slots, t, lr=lr, lr_scale=lr_scale, copy=beside)
                    self.probe.ran(piece.rule, t, lr, lr_scale)
                piece.updates += 1
        self.probe.end()
        return bits

    def assign(
        self, slot: str, values: Mapping[str, Loaded], updates: Mapping[str, int], constants: Constants
    ) -> None:
        """Assign values to parameters ("w") or a slot, and update counts and constants to tensors."""
        for name in constants.keys() & self.spans.keys():
            self._use(name, constants[name])
        for name in self.spans.keys() & {**values, **updates}.keys():
            value, first = values.get(name), self.spans[name].start
            for piece in self._pieces[name]:
                array = {"w": piece.w, **piece.slots}[slot]
                if isinstance(value, RowGradient):
                    width = self._partition.specs[name].width
                    own = sparse.within(value.rows, piece.span, width)
                    rows = value.rows[own] - sparse.rows_of(piece.span, width)[0]
                    if piece.table is not None:
                        piece.table.catch_up(rows)
                    array.view(-1, width)[torch.from_numpy(rows).to(self.device)] = value.values[own]
                elif value is not None:
                    piece.catch_up()
                    array.copy_(value[piece.span.start - first : piece.span.stop - first])
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
        rule = self._own_rules.get(name, self.rule)
        others = tuple((constant, value) for constant, value in constants.items() if constant != "lr")
        return _changed(rule, others) if others else rule

    def compensated(
        self, gradients: Mapping[str, Loaded], pulled: Point, weight: float
    ) -> Mapping[str, Loaded]:
        """g + weight*g*g*(w - w_pulled) of every gradient; see `consistency.Async`."""
        point = self.point(training=True)
        compensated: dict[str, Loaded] = {}
        for name, gradient in gradients.items():
            span, width = self.spans[name], self._partition.specs[name].width
            dtype, at = self._layout[name]
            now, then = (flat[dtype][at : at + span.numel] for flat in (point, pulled))
            if isinstance(gradient, RowGradient):
                own = torch.from_numpy(gradient.rows - sparse.rows_of(span, width)[0]).to(self.device)
                drift = now.view(-1, width)[own] - then.view(-1, width)[own]
                compensated[name] = RowGradient(gradient.rows, corrected(gradient.values, drift, weight))
            else:
                compensated[name] = corrected(gradient, now - then, weight)
        return compensated

    def catch_up(self) -> None:
        """Bring every row up to date."""
        for pieces in self._pieces.values():
            for piece in pieces:
                piece.catch_up()

    # ---- inside

    def _writes_all(self, gradients: Mapping[str, Loaded]) -> bool:
        """Whether one float32 buffer is all there is, and a dense update writes every element of it."""
        dense = {name for name, gradient in gradients.items() if isinstance(gradient, torch.Tensor)}
        return (
            self.device.type == "cpu"
            and self._w.keys() == {"float32"}
            and all(name in dense or not span.numel for name, span in self.spans.items())
        )

    def _use(self, name: str, constants: Mapping[str, float]) -> None:
        """Let a tensor's next update have these constants; rows that missed updates of other ones catch up first."""
        rule = self.rule_with(name, constants)
        for piece in self._pieces[name]:
            if piece.rule != rule:
                piece.catch_up()
                piece.rule = rule
        if constants:
            self.constants[name] = constants
        else:
            self.constants.pop(name, None)

    def _own_rows(self, name: str, rows: Array) -> Array:
        span, spec = self.span(name)
        rows = sparse.check_indices(spec, rows, span)
        if not (rows[1:] > rows[:-1]).all():  # so that an answer is never larger than the table
            raise InvalidArgument(
                "row numbers do not increase", field=name, fix="name each row once, in order"
            )
        return rows

    def _view(self, tensor: str, start: int, stop: int) -> torch.Tensor:
        dtype, at = self._layout[tensor]
        return self._w[dtype][at + start : at + stop]

    def _load(self, state: ShardState) -> None:
        """Fill the buffers, and cut them into pieces by update count."""
        sizes = {dtype: at + self.spans[name].numel for name, (dtype, at) in self._layout.items()}
        for dtype, size in sizes.items():
            self._w[dtype] = torch.zeros(size, dtype=getattr(torch, dtype), device=self.device)
            self._slots[dtype] = dict(self.rule.init(self._w[dtype]))
        segments: dict[str, list[Segment]] = {}
        for segment in state.segments:
            segments.setdefault(segment.tensor, []).append(segment)
        for name, (dtype, at) in self._layout.items():
            w, slots, span = self._w[dtype], self._slots[dtype], self.spans[name]
            for slot, tensors in state.arrays.items():
                values = torch.from_numpy(np.array(tensors[name], dtype=dtype)).reshape(-1)
                (w if slot == "w" else slots[slot])[at : at + span.numel].copy_(values)
            rule = self.rule_with(name, self.constants.get(name, {}))
            for cut in segments.get(name) or [Segment(name, span.start, span.stop, 0)]:
                own = slice(at + cut.start - span.start, at + cut.stop - span.start)
                views = {slot: buffer[own] for slot, buffer in slots.items()}
                piece = _Piece(Span(name, cut.start, cut.stop), rule, cut.updates, w[own], views)
                self._pieces[name].append(piece)


@lru_cache(maxsize=4096)
def _changed(rule: optim.Rule, constants: tuple[tuple[str, float], ...]) -> optim.Rule:
    return optim.with_constants(rule, dict(constants))


def _tensor(copy: Array) -> torch.Tensor:
    """What an update writes a copy to."""
    if copy.dtype == np.uint16:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)
