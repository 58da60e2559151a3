"""The single owner of a slice of a job: parameters, slots and clock, changed by admitted pushes alone.

A `Shard` is plain state with one writer. It holds one flat buffer of parameters and one per slot for each
dtype, so a whole-tensor push runs straight from the arrived gradient into those buffers: no staging.
Waiting, locks and transport are its caller's (`adamserve.shard.host`).
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from adamserve import optim
from adamserve.errors import BadSequence, Conflict, InvalidArgument, NotFinite, NotFound
from adamserve.optim.rows import Rows
from adamserve.optim.rows import prepare as prepare_rows
from adamserve.shard import sparse
from adamserve.shard.consistency import (
    BSP,
    Async,
    Consistency,
    Decision,
    Leases,
    Verdict,
    admit,
    check_lease,
    may_start,
)
from adamserve.shard.durations import APPLY_BUCKETS, Stopwatch
from adamserve.shard.events import Events
from adamserve.shard.geometry import Partition
from adamserve.shard.gradients import Loaded, RowGradient, borrow, corrected, mean
from adamserve.shard.sampling import Probe
from adamserve.shard.statistics import STALENESS_CAP, PusherStatistics, ShardStatistics
from adamserve.values import (
    BFLOAT16,
    GRADIENT_DTYPES,
    Array,
    Joined,
    Narrow,
    Outcome,
    Push,
    PusherState,
    Receipt,
    Segment,
    ShardState,
    Span,
    SparseRows,
    Stamp,
)

_GRADIENT_DTYPES = {name: [*map(np.dtype, dtypes), BFLOAT16] for name, dtypes in GRADIENT_DTYPES.items()}

RECEIPTS_KEPT = 64
"""Receipts kept for each pusher, to answer its retries with."""


@dataclass(frozen=True, slots=True)
class CheckedPush:
    """A push that passed `Shard.check`, with its gradients as tensors on the shard's device."""

    push: Push
    gradients: Mapping[str, Loaded]
    nbytes: int
    narrow: Narrow | None = None


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

    def catch_up(self) -> None:
        """Bring all rows up to date."""
        if self.table is not None:
            self.table.catch_up()
            self.table = None


@dataclass(slots=True)
class _Pusher:
    """What is remembered of a pusher."""

    last_seq: int = 0
    steps: int = 0
    session: str = ""
    pushed_at: float | None = None
    receipts: OrderedDict[int, Receipt] = field(default_factory=OrderedDict)


class Shard:
    """Parameters, slots and clock of one shard of one job.

    Not thread-safe, except for `check`, which reads what never changes and remembers only which kernels are made.

    Args:
        partition: where every element of the job lives.
        state: the values to start from, fresh (only "w", no slots) or from a checkpoint.
        rule: the update rule.
        tensor_rules: by tensor, a rule other than `rule`, as `optim.rules_of` checks them.
        consistency: decides when a push may be applied.
        exact: a row without a gradient changes as a zero gradient would change it; False leaves it as it is.
        device: where the buffers live, as torch names it.
        now: clock in seconds, for leases.
        wall: seconds since 1970, for what people read.
    """

    def __init__(
        self,
        *,
        partition: Partition,
        state: ShardState,
        rule: optim.Rule,
        consistency: Consistency,
        tensor_rules: Mapping[str, optim.Rule] | None = None,
        exact: bool = True,
        device: str = "cpu",
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.index = state.shard
        self.rule = rule
        self.consistency = consistency
        self.stamp = state.stamp
        self.restored_clock = state.stamp.clock
        self._tensor_rules = dict(tensor_rules or {})
        self._exact = exact
        self._partition = partition
        self._device = torch.device(device)
        self._spans = {span.tensor: span for span in partition.shards[self.index]}
        self._buffers: dict[str, dict[str, torch.Tensor]] = {}
        self._pieces: dict[str, list[_Piece]] = {name: [] for name in self._spans}
        self._load(state)
        self._pushers = {name: _Pusher(p.last_seq, p.steps) for name, p in state.pushers.items()}
        self._wall = wall
        self._events = Events(self.index, wall)
        self._leases = Leases(now, self._fell_silent)
        self._round: dict[str, CheckedPush] = {}
        self._pulled: dict[str, tuple[Stamp, dict[str, torch.Tensor]]] = {}
        self._pushes: Counter[str] = Counter()
        self._staleness: Counter[int] = Counter()
        self._apply_seconds = Stopwatch(APPLY_BUCKETS)
        self._bytes_in = 0
        self._bytes_out = 0
        self.probe = self._make_probe()
        self._prepared = {(torch.float32, False)}
        """Kernels made for float32 parameters: the gradients' dtype, and whether with a narrow copy."""
        self.kernels = [
            optim.prepare(rule, getattr(torch, dtype), device=self._device.type) for dtype in self._buffers
        ]

        for name in self._spans:
            spec = partition.specs[name]
            if spec.stride != 1 and self._device.type == "cpu":
                prepare_rows(self._tensor_rules.get(name, rule), getattr(torch, spec.dtype))

    # ---- pushes

    def check(self, push: Push, narrow: Narrow | None = None) -> CheckedPush:
        """Check everything about a push that does not depend on clocks. Thread-safe; changes nothing.

        Args:
            push: what arrived.
            narrow: filled by the update that this push completes, if it can be.

        Raises:
            NotFound: a tensor is not this shard's.
            InvalidArgument: a gradient has another shape or dtype, is not contiguous, or holds NaN or infinity;
                or the rate is not a finite number of at least 0.
            BadSequence: seq is below 1.
        """
        if not push.seq >= 1:
            raise BadSequence(f"must be at least 1, got {push.seq}", field="seq", fix="count pushes from 1")
        if push.lr is not None and not 0.0 <= push.lr < math.inf:
            raise InvalidArgument(f"must be finite and at least 0, got {push.lr!r}", field="lr")
        for name, rate in push.rates.items():
            self._partition.spec(name)
            if not 0.0 <= rate < math.inf:
                raise InvalidArgument(f"must be finite and at least 0, got {rate!r}", field=f"rates[{name}]")
        gradients: dict[str, Loaded] = {}
        nbytes = 0
        for name, gradient in push.gradients.items():
            if isinstance(gradient, SparseRows):
                gradients[name] = self._check_rows(name, gradient, finite=push.finite)
            else:
                gradients[name] = self._check_gradient(name, gradient, finite=push.finite)
            nbytes += gradient.nbytes
        self._prepare(gradients, narrow=narrow is not None)
        return CheckedPush(push, gradients, nbytes, narrow)

    def offer(self, checked: CheckedPush) -> Receipt | Decision:
        """Apply a push now, or say that it must wait.

        Either every tensor in the push is updated and the clock grows by one, or nothing changes. A push
        that must wait is remembered where the round needs it (bsp); offer it again when something changed,
        or `withdraw` it.

        Returns:
            The receipt; or a decision with verdict WAIT and its reason.

        Raises:
            NotFound: the pusher has not joined.
            BadSequence: seq skips one.
            InvalidArgument: the push says that it was pulled at a later clock than the shard's.
        """
        push = checked.push
        pusher = self._known(push.pusher)
        _same_session(push.pusher, pusher, push.session)
        if push.seq <= pusher.last_seq:
            self._pushes[Outcome.DUPLICATE] += 1
            first = self._first_receipt(pusher, push.seq)
            return first if first.outcome is Outcome.STALE else replace(first, outcome=Outcome.DUPLICATE)
        if push.pulled.incarnation == self.stamp.incarnation and push.seq > pusher.last_seq + 1:
            raise BadSequence(
                f"{push.seq} skips {pusher.last_seq + 1}",
                field="seq",
                fix="send pushes in order; after a restart join again with the last seq used",
            )
        decision = admit(
            self.consistency,
            pulled=push.pulled,
            now=self.stamp,
            pusher=push.pusher,
            steps=self._live_steps(push.pusher),
            waiting=self._round,
        )
        match decision.verdict:
            case Verdict.INVALID:
                raise InvalidArgument(
                    decision.reason, field="clock", fix="push with the clock that the pull returned"
                )
            case Verdict.WAIT:
                if isinstance(self.consistency, BSP):
                    self._round[push.pusher] = checked
                return decision
            case Verdict.STALE:
                return self._refuse_stale(push, decision.reason)
            case Verdict.APPLY:
                return self._apply(checked, decision)

    def receipt(self, pusher: str, seq: int) -> Receipt | None:
        """The receipt of a decided push, or None while it is undecided or no longer remembered."""
        return self._known(pusher).receipts.get(seq)

    def withdraw(self, pusher: str) -> None:
        """Forget a push that waits."""
        self._round.pop(pusher, None)

    def refuse(self, pusher: str, reason: str) -> None:
        """Note a push that was refused for bad input."""
        self._pushes["INVALID"] += 1
        self._events.add("invalid", pusher, reason)

    # ---- pullers and pushers

    def join(self, pusher: str, *, lease_s: float, last_seq: int = 0, session: str = "") -> Joined:
        """Make a pusher live for `lease_s` seconds from its latest call.

        A newcomer starts level with the slowest live pusher, so that it holds nobody back. A push that waits is given
        up if it is another session's, or not after `last_seq`. Idempotent.

        Args:
            pusher: its name in the job.
            lease_s: seconds after which a silent pusher stops counting.
            last_seq: the last seq that the pusher has used, where it knows better than the shard.
            session: a text of the client's own. While a name is live it belongs to its session.

        Raises:
            Conflict: the name is live in another session.
        """
        if not pusher:
            raise InvalidArgument("a pusher's name is empty", field="pusher")
        if not last_seq >= 0:
            raise BadSequence(f"must be at least 0, got {last_seq}", field="last_seq")
        check_lease(lease_s)
        record = self._pushers.setdefault(pusher, _Pusher())
        if pusher in self._leases.live():
            _same_session(pusher, record, session)
        waiting = self._round.get(pusher)
        if waiting is not None and (session != record.session or waiting.push.seq <= last_seq):
            self.withdraw(pusher)
        record.session = session
        self._catch_up(pusher, record)
        record.last_seq = max(record.last_seq, last_seq)
        self._leases.grant(pusher, lease_s)
        return Joined(self.stamp, record.last_seq, self.restored_clock)

    def renew(self, pusher: str, session: str = "") -> None:
        """Renew a pusher's lease; one that had fallen silent comes back level with the slowest.

        Raises:
            NotFound: the pusher has not joined.
            Conflict: another session has taken its name over.
        """
        record = self._known(pusher)
        _same_session(pusher, record, session)
        self._catch_up(pusher, record)
        self._leases.renew(pusher)

    def leave(self, pusher: str, session: str = "") -> None:
        """Stop counting a pusher; its seq is remembered. One that another session has taken over is left alone."""
        record = self._pushers.get(pusher)
        if record is not None and record.session != session:
            return
        self._leases.drop(pusher)
        self._round.pop(pusher, None)
        self._pulled.pop(pusher, None)

    def may_start(self, pusher: str) -> Decision:
        """Whether a pusher may pull for its next step now (ssp holds one that runs ahead)."""
        return may_start(self.consistency, pusher=pusher, steps=self._live_steps())

    def next_expiry_s(self) -> float | None:
        """Seconds until some live pusher's lease ends, or None."""
        return self._leases.next_expiry_s()

    # ---- reading

    def read(self, *, training: bool = True) -> dict[str, Array]:
        """The shard's parameters as one flat array a dtype, laid out as `Partition.layout` says.

        Args:
            training: the point where gradients are to be taken (Nesterov's look-ahead) rather than w.

        Returns:
            On the CPU views of the live buffers: copy them before the next push is offered.
        """
        return {dtype: values.cpu().numpy() for dtype, values in self._point(training=training).items()}

    def read_rows(self, wanted: Mapping[str, Array], *, training: bool = True) -> dict[str, Array]:
        """Some rows of some tensors, and the other tensors whole. At the cost of what is read.

        Args:
            wanted: by tensor, increasing row numbers in the whole tensor.
            training: as for `read`.

        Returns:
            Copies, by tensor: values of shape (n, width) for those in `wanted`, and 1-D the shard's span for others.

        Raises:
            NotFound, InvalidArgument: a tensor is not this shard's, or a row is not; nothing has changed.
        """
        wanted = {name: self._own_rows(name, rows) for name, rows in wanted.items()}
        found: dict[str, Array] = {}
        for name, span in self._spans.items():
            spec, rule = self._partition.specs[name], self._tensor_rules.get(name, self.rule)
            flat = torch.empty(span.numel, dtype=getattr(torch, spec.dtype)) if name not in wanted else None
            values = torch.empty((len(wanted.get(name, ())), spec.width), dtype=getattr(torch, spec.dtype))
            for piece in self._pieces[name]:
                if flat is not None:
                    piece.catch_up()
                    arrays = self._arrays_of(piece)
                    at = slice(piece.span.start - span.start, piece.span.stop - span.start)
                    flat[at] = rule.lookahead(arrays.pop("w"), arrays) if training else piece.w
                else:
                    first, _ = sparse.rows_of(piece.span, spec.width)
                    chosen = sparse.within(wanted[name], piece.span, spec.width)
                    rows = wanted[name][chosen] - first
                    if piece.table is not None:
                        piece.table.catch_up(rows)
                    index = torch.from_numpy(rows).to(self._device)
                    arrays = {
                        slot: a.view(-1, spec.width).index_select(0, index)
                        for slot, a in self._arrays_of(piece).items()
                        if slot == "w" or rule.has_lookahead
                    }
                    w = arrays.pop("w")
                    values[chosen] = (
                        rule.lookahead(w, arrays) if training and rule.has_lookahead else w
                    ).cpu()
            found[name] = (values if flat is None else flat).numpy()
        return found

    def note_pull(self, pusher: str | None, *, asked: int = 0, answered: int | None = None) -> None:
        """Account for a pull; with delay compensation keep the parameters pulled, for the pusher's next push.

        Pullers of one clock share one kept copy.

        Args:
            pusher: who pulled; None for one that only reads.
            asked: bytes that named rows.
            answered: bytes of parameters; None for all of them.
        """
        whole = sum(buffers["w"].nbytes for buffers in self._buffers.values())
        self._bytes_out += whole if answered is None else answered
        self._bytes_in += asked
        if (
            pusher is None
            or not isinstance(self.consistency, Async)
            or not self.consistency.delay_compensation
        ):
            return
        shared = next((kept for kept in self._pulled.values() if kept[0] == self.stamp), None)
        self._pulled[pusher] = shared or (
            self.stamp,
            {dtype: values.clone() for dtype, values in self._point(training=True).items()},
        )

    def state(self) -> ShardState:
        """Everything that a restart needs; on the CPU views of the live buffers."""
        self._catch_up_rows()
        slots = ("w", *self.rule.slot_names)
        arrays: dict[str, dict[str, Array]] = {slot: {} for slot in slots}
        for span, dtype, offset in self._partition.layout(self.index):
            for slot in slots:
                values = self._buffers[dtype][slot][offset : offset + span.numel]
                arrays[slot][span.tensor] = values.cpu().numpy()
        segments = tuple(
            Segment(piece.span.tensor, piece.span.start, piece.span.stop, piece.updates)
            for pieces in self._pieces.values()
            for piece in pieces
        )
        pushers = {name: PusherState(p.last_seq, p.steps) for name, p in self._pushers.items()}
        return ShardState(self.index, self.stamp, segments, arrays, pushers)

    def statistics(self) -> ShardStatistics:
        """An immutable account of what the shard has done and how it stands; `probe.seen` is the caller's to add."""
        live = tuple(self._leases.live())
        expiries = self._leases.expiries()
        known = ((name, self._pushers[name]) for name in live)
        return ShardStatistics(
            shard=self.index,
            stamp=self.stamp,
            pushes=dict(self._pushes),
            staleness=dict(self._staleness),
            apply_seconds=self._apply_seconds.read(),
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            state_bytes=sum(b.nbytes for buffers in self._buffers.values() for b in buffers.values()),
            live=live,
            kernel=self.kernels[0].executor if self.kernels else "none",
            trainers=sum(bool(self._pushers[name].session) for name in live),
            silent=len(self._leases.silent()),
            lease_expiries=expiries,
            pushers=tuple(
                PusherStatistics(name, pusher.last_seq, pusher.pushed_at) for name, pusher in known
            ),
            events=self._events.recent(),
        )

    # ---- inside

    def _load(self, state: ShardState) -> None:
        """Fill the buffers, and cut them into pieces by update count."""
        sizes: dict[str, int] = {}
        layout = list(self._partition.layout(self.index))
        for span, dtype, offset in layout:
            sizes[dtype] = offset + span.numel
        segments: dict[str, list[Segment]] = {}
        for segment in state.segments:
            segments.setdefault(segment.tensor, []).append(segment)
        for dtype, size in sizes.items():
            w = torch.zeros(size, dtype=getattr(torch, dtype), device=self._device)
            self._buffers[dtype] = {"w": w, **self.rule.init(w)}
        for span, dtype, offset in layout:
            buffers = self._buffers[dtype]
            for slot, tensors in state.arrays.items():
                values = torch.from_numpy(np.array(tensors[span.tensor], dtype=dtype))
                buffers[slot][offset : offset + span.numel].copy_(values.reshape(-1))
            for cut in segments.get(span.tensor) or [Segment(span.tensor, span.start, span.stop, 0)]:
                a, b = offset + cut.start - span.start, offset + cut.stop - span.start
                views = {slot: buffer[a:b] for slot, buffer in buffers.items()}
                piece = _Piece(Span(cut.tensor, cut.start, cut.stop), cut.updates, views.pop("w"), views)
                self._pieces[span.tensor].append(piece)

    def _make_probe(self) -> Probe:
        layout = {
            span.tensor: (span, dtype, offset) for span, dtype, offset in self._partition.layout(self.index)
        }

        def view(tensor: str, start: int, stop: int) -> torch.Tensor:
            _, dtype, offset = layout[tensor]
            return self._buffers[dtype]["w"][offset + start : offset + stop]

        return Probe((span for span, _, _ in layout.values()), view)

    def _span(self, name: str) -> Span:
        span = self._spans.get(name)
        if span is None:
            self._partition.spec(name)
            raise NotFound(
                f"shard {self.index} owns no part of {name!r}",
                field=name,
                fix="send each shard its own spans",
            )
        return span

    def _own_rows(self, name: str, rows: Array) -> Array:
        span, spec = self._span(name), self._partition.specs[name]
        sparse.check_table(spec)
        rows = sparse.check_indices(spec, rows, *sparse.rows_of(span, spec.width))
        if not (rows[1:] > rows[:-1]).all():  # so that an answer is never larger than the table
            raise InvalidArgument(
                "row numbers do not increase", field=name, fix="name each row once, in order"
            )
        return rows

    def _check_rows(self, name: str, gradient: SparseRows, *, finite: bool) -> RowGradient:
        span, spec = self._span(name), self._partition.specs[name]
        sparse.check_table(spec)
        first, stop = sparse.rows_of(span, spec.width)
        found = sparse.checked(spec, gradient, first=first, stop=stop, finite=finite)
        values = borrow(found.values)
        if values.dtype is torch.float32 and spec.dtype == "float64":
            values = values.double()
        return RowGradient(found.indices, values.to(self._device))

    def _check_gradient(self, name: str, gradient: Array, *, finite: bool) -> torch.Tensor:
        span = self._span(name)
        dtype = self._partition.specs[name].dtype
        if gradient.dtype not in _GRADIENT_DTYPES[dtype]:
            raise InvalidArgument(
                f"a gradient of dtype {gradient.dtype} for a {dtype} parameter",
                field=name,
                fix="send " + " or ".join(GRADIENT_DTYPES[dtype]),
            )
        if gradient.shape != (span.numel,):
            raise InvalidArgument(
                f"a gradient of shape {tuple(gradient.shape)} for elements {span.start} to {span.stop}",
                field=name,
                fix=f"send shape ({span.numel},)",
            )
        if not gradient.flags.c_contiguous:
            raise InvalidArgument("the gradient is not contiguous", field=name, fix="send a contiguous copy")
        if gradient.dtype == BFLOAT16:
            tensor = borrow(gradient.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = borrow(gradient)
        if not finite and not optim.all_finite(tensor):
            raise NotFinite(
                "the gradient holds NaN or infinity", field=name, fix="skip this batch, or clip the gradient"
            )
        return (tensor.double() if dtype == "float64" else tensor).to(self._device)

    def _prepare(self, gradients: Mapping[str, Loaded], *, narrow: bool) -> None:
        """Make the kernels that float32 parameters need now, rather than while others wait for the writer."""
        dtypes = {g.dtype for g in gradients.values() if not isinstance(g, RowGradient)} - {torch.float64}
        if narrow and dtypes:
            dtypes.add(torch.float32)  # a mean's
        for dtype in dtypes:
            if (dtype, narrow) not in self._prepared:
                for rule in {self.rule, *self._tensor_rules.values()}:
                    optim.prepare(rule, torch.float32, [dtype], self._device, narrow=narrow)
                self._prepared.add((dtype, narrow))

    def _fell_silent(self, pusher: str) -> None:
        """Free what was kept for a pusher that may never come back; if it does, its next push goes uncompensated."""
        self._pulled.pop(pusher, None)
        self._events.add("silent", pusher, "its lease ran out without its having left")

    def _known(self, pusher: str) -> _Pusher:
        try:
            return self._pushers[pusher]
        except KeyError:
            raise NotFound(f"pusher {pusher!r} has not joined", field="pusher", fix="join first") from None

    def _first_receipt(self, pusher: _Pusher, seq: int) -> Receipt:
        return pusher.receipts.get(seq) or Receipt(
            Outcome.DUPLICATE, self.stamp, 0, "decided earlier, or given up; there is no receipt of it"
        )

    def _live_steps(self, *also: str) -> dict[str, int]:
        """Steps of every live pusher, and of those named."""
        return {name: self._pushers[name].steps for name in sorted({*self._leases.live(), *also})}

    def _catch_up(self, pusher: str, record: _Pusher) -> None:
        """Set a pusher that was not live level with the slowest live one."""
        steps = self._live_steps()
        if pusher not in steps:
            record.steps = max(record.steps, min(steps.values(), default=0))

    def _record(self, push: Push, receipt: Receipt) -> Receipt:
        """Note that a push is decided."""
        pusher = self._pushers[push.pusher]
        pusher.last_seq = push.seq
        pusher.pushed_at = self._wall()
        pusher.steps += 1
        pusher.receipts[push.seq] = receipt
        while len(pusher.receipts) > RECEIPTS_KEPT:
            pusher.receipts.popitem(last=False)
        self._pushes[receipt.outcome] += 1
        self._staleness[min(receipt.staleness, STALENESS_CAP)] += 1
        return receipt

    def _refuse_stale(self, push: Push, reason: str) -> Receipt:
        staleness = max(0, self.stamp.clock - push.pulled.clock)
        receipt = Receipt(Outcome.STALE, self.stamp, staleness, reason)
        self._events.add("stale", push.pusher, reason)
        if push.seq == self._pushers[push.pusher].last_seq + 1:
            return self._record(push, receipt)
        # From before the shard was restored, and so ahead of what it knows: joining again mends the count.
        self._pushes[Outcome.STALE] += 1
        return receipt

    def _apply(self, checked: CheckedPush, decision: Decision) -> Receipt:
        """Run the rule, move the clock, write the receipts."""
        members = {**self._round, checked.push.pusher: checked}
        self._round = {}
        pushes = [members[name] for name in sorted(members)]
        began = time.perf_counter()
        gradients = (
            self._compensated(checked)
            if len(pushes) == 1
            else mean([member.gradients for member in pushes], self._spans)
        )
        if self.probe.wanted:
            self._begin_look(gradients)
        copy = self._room(checked.narrow, gradients)
        for name, gradient in gradients.items():
            rule = self._tensor_rules.get(name, self.rule)
            lr = _mean_rate(pushes, name)
            for piece in self._pieces[name]:
                if isinstance(gradient, RowGradient):
                    self._step_rows(rule, piece, gradient, lr, decision.lr_scale)
                else:
                    piece.catch_up()
                    begin = piece.span.start - self._spans[name].start
                    part = gradient[begin : begin + piece.span.numel]
                    t = piece.updates + 1
                    at = piece.w.storage_offset()
                    beside = None if copy is None else copy[at : at + piece.span.numel]
                    scale = decision.lr_scale
                    rule.step_(piece.w, part, piece.slots, t, lr=lr, lr_scale=scale, narrow=beside)
                    self.probe.ran(rule, t, lr, decision.lr_scale)
                piece.updates += 1
        self.probe.end()
        self._apply_seconds.add(time.perf_counter() - began)
        before, self.stamp = self.stamp, Stamp(self.stamp.incarnation, self.stamp.clock + 1)
        if copy is not None and checked.narrow is not None:
            checked.narrow.stamp = self.stamp
        for member in pushes:
            self._bytes_in += member.nbytes
            staleness = before.clock - member.push.pulled.clock
            self._record(member.push, Receipt(Outcome.APPLIED, self.stamp, staleness, decision.reason))
        return self._pushers[checked.push.pusher].receipts[checked.push.seq]

    def _room(self, narrow: Narrow | None, gradients: Mapping[str, Loaded]) -> torch.Tensor | None:
        """Room for a narrow copy, laid out as the buffers are, if an update with these gradients fills it."""
        if narrow is None or self._device.type != "cpu" or self._buffers.keys() != {"float32"}:
            return None
        dense = {name for name, gradient in gradients.items() if isinstance(gradient, torch.Tensor)}
        if any(span.numel and name not in dense for name, span in self._spans.items()):
            return None
        narrow.items = narrow.room(self._buffers["float32"]["w"].numel())
        return torch.from_numpy(narrow.items.view(np.int16)).view(torch.bfloat16)

    def _begin_look(self, gradients: Mapping[str, Loaded]) -> None:
        self.probe.begin(
            {name: g for name, g in gradients.items() if not isinstance(g, RowGradient)},
            {name: g.values for name, g in gradients.items() if isinstance(g, RowGradient)},
            [name for name in gradients if any(piece.table is not None for piece in self._pieces[name])],
        )

    def _step_rows(
        self, rule: optim.Rule, piece: _Piece, gradient: RowGradient, lr: float | None, lr_scale: float
    ) -> None:
        """One update of a piece from the rows of a gradient that are in it."""
        width = self._partition.specs[piece.span.tensor].width
        if piece.table is None:
            arrays = {slot: a.view(-1, width) for slot, a in self._arrays_of(piece).items()}
            piece.table = Rows(rule, arrays, piece.updates, exact=self._exact)
        part = sparse.within(gradient.rows, piece.span, width)
        rows = gradient.rows[part] - sparse.rows_of(piece.span, width)[0]
        piece.table.step_(rows, gradient.values[part], lr=lr, lr_scale=lr_scale)

    @staticmethod
    def _arrays_of(piece: _Piece) -> dict[str, torch.Tensor]:
        return {"w": piece.w, **piece.slots}

    def _catch_up_rows(self) -> None:
        """Bring every row up to date."""
        for pieces in self._pieces.values():
            for piece in pieces:
                piece.catch_up()

    def _point(self, *, training: bool) -> dict[str, torch.Tensor]:
        self._catch_up_rows()
        point = {}
        for dtype, buffers in self._buffers.items():
            slots = {slot: buffer for slot, buffer in buffers.items() if slot != "w"}
            point[dtype] = self.rule.lookahead(buffers["w"], slots) if training else buffers["w"]
        return point

    def _compensated(self, checked: CheckedPush) -> Mapping[str, Loaded]:
        """g + lambda*g*g*(w - w_pulled), where the job asks for it and the pulled parameters are known."""
        weight = self.consistency.delay_compensation if isinstance(self.consistency, Async) else 0.0
        stamp, pulled = self._pulled.get(checked.push.pusher, (None, {}))
        if not weight or stamp != checked.push.pulled or stamp == self.stamp:
            return checked.gradients
        point = self._point(training=True)
        compensated: dict[str, Any] = {}
        for span, dtype, offset in self._partition.layout(self.index):
            gradient = checked.gradients.get(span.tensor)
            if gradient is None:
                continue
            now, then = (flat[dtype][offset : offset + span.numel] for flat in (point, pulled))
            if isinstance(gradient, RowGradient):
                width = self._partition.specs[span.tensor].width
                own = torch.from_numpy(gradient.rows - sparse.rows_of(span, width)[0]).to(self._device)
                now, then = (whole.view(-1, width)[own] for whole in (now, then))
                values = corrected(gradient.values, now - then, weight)
                compensated[span.tensor] = RowGradient(gradient.rows, values)
            else:
                compensated[span.tensor] = corrected(gradient, now - then, weight)
        return compensated


def _mean_rate(pushes: list[CheckedPush], tensor: str) -> float | None:
    """The mean of the rates that the members give this tensor; None where none of them gives one."""
    given = (checked.push.rates.get(tensor, checked.push.lr) for checked in pushes)
    rates = [rate for rate in given if rate is not None]
    return sum(rates) / len(rates) if rates else None


def _same_session(name: str, pusher: _Pusher, session: str) -> None:
    if pusher.session != session:
        raise Conflict(
            f"the name {name!r} belongs to another client's session",
            field="pusher",
            fix="give every client a pusher name of its own",
        )
