"""The single owner of a slice of a job: parameters, slots and clock, changed by admitted pushes alone.

Waiting, locks and transport are its caller's (`adamserve.shard.host`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adamserve import optim
from adamserve.errors import BadSequence, InvalidArgument, LimitExceeded
from adamserve.shard.checks import check_rates, check_value
from adamserve.shard.consistency import Consistency, Decision, Verdict, admit
from adamserve.shard.durations import APPLY_BUCKETS, PUSH_BUCKETS, QUEUE_BUCKETS, Stopwatch
from adamserve.shard.events import Events
from adamserve.shard.geometry import Partition
from adamserve.shard.gradients import Loaded, load, mean
from adamserve.shard.ledger import Decided, Ledger
from adamserve.shard.statistics import STALENESS_CAP, PusherStatistics, ShardStatistics
from adamserve.shard.store import Point, Room, Store
from adamserve.values import Array, Joined, Outcome, Push, PusherKind, Receipt, ShardState, Stamp


@dataclass(frozen=True, slots=True)
class CheckedPush:
    """A push that passed `Shard.check`, with its gradients as tensors on the shard's device."""

    push: Push
    gradients: Mapping[str, Loaded]
    nbytes: int


class Shard:
    """Parameters, slots and clock of one shard of one job.

    Not thread-safe, except for `check`, which changes nothing that others read.

    Args:
        partition: where every element of the job lives.
        state: the values to start from, fresh (only "w", no slots) or from a checkpoint.
        rule: the update rule.
        tensor_rules: by tensor, a rule other than `rule`, as `optim.rules_of` checks them.
        consistency: decides when a push may be applied.
        exact: a row without a gradient changes as a zero gradient would change it; False leaves it as it is.
        device: where the buffers live, as torch names it.
        waiting_bytes: most bytes of gradients that wait for a round to end.
        now: clock in seconds, for leases.
        wall: seconds since 1970, for what people read.

    Attributes:
        waiting: pushes that wait for their turn, as the host counts them.
        push_seconds: from a push's arrival to its receipt, as the host measures it.
        queue_seconds: of that, the wait for the shard and for its turn.
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
        waiting_bytes: int = 4 << 30,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.index = state.shard
        self.rule = rule
        self.consistency = consistency
        self.stamp = state.stamp
        self.restored_clock = state.stamp.clock
        self.partition = partition
        self.store = Store(partition, state, rule, tensor_rules or {}, exact=exact, device=device)
        self.waiting = 0
        self.push_seconds = Stopwatch(PUSH_BUCKETS)
        self.queue_seconds = Stopwatch(QUEUE_BUCKETS)
        self.ledger = Ledger(state.pushers, now, self._fell_silent)
        self._wall = wall
        self._events = Events(self.index, wall)
        self._waiting_bytes = waiting_bytes
        self._round: dict[str, CheckedPush] = {}
        self._round_began = state.stamp.clock
        self._pulled: dict[str, tuple[Stamp, Point]] = {}
        self._pushes: Counter[str] = Counter()
        self._staleness: Counter[int] = Counter()
        self._apply_seconds = Stopwatch(APPLY_BUCKETS)
        self._bytes_in = 0
        self._bytes_out = 0

    # ---- pushes

    def check(self, push: Push, *, copied: str = "") -> CheckedPush:
        """Check everything about a push that does not depend on clocks. Thread-safe; changes nothing.

        Args:
            push: what arrived.
            copied: the encoding of the copy that `offer` will be asked for; "" for none.

        Raises:
            NotFound: a tensor is not this shard's.
            InvalidArgument: a gradient is not as `gradients.load` wants it, or a rate not as `check_rates` does.
            BadSequence: seq is below 1.
        """
        if not push.seq >= 1:
            raise BadSequence(f"must be at least 1, got {push.seq}", field="seq", fix="count pushes from 1")
        for name in push.rates:
            self.partition.spec(name)
        rates = {name: given["lr"] for name, given in push.constants.items() if "lr" in given}
        check_rates(push.lr, {**rates, **push.rates})
        for name, constants in push.constants.items():
            self.store.rule_with(name, constants)
        if push.assign:
            self._check_values(push)
        gradients = {
            name: load(*self.store.span(name), gradient, self.store.device, finite=push.finite)
            for name, gradient in push.gradients.items()
        }
        self.store.prepare(gradients, copied=copied)
        return CheckedPush(push, gradients, sum(gradient.nbytes for gradient in push.gradients.values()))

    def offer(self, checked: CheckedPush, room: Room | None = None) -> Decided | Decision:
        """Apply a push now, or say that it must wait.

        Either every tensor in the push is updated and the clock grows by one, or nothing changes. A push that must wait
        is remembered where the round needs it (bsp); offer it again when something changed, or `withdraw` it.

        Args:
            checked: the push.
            room: asks for a copy of the new parameters, as for `Store.step`.

        Returns:
            What was decided; or a decision with verdict WAIT and its reason.

        Raises:
            NotFound, Conflict: as `renew`.
            BadSequence: seq skips one, or is so old that its outcome is no longer known.
            InvalidArgument: the push says that it was pulled at a later clock than the shard's.
            LimitExceeded: the gradients that wait for the round would take too much memory.
        """
        push = checked.push
        pusher = self.ledger[push.pusher]
        pusher.check_session(push.pusher, push.session)
        if push.seq <= pusher.last_seq:
            receipt = pusher.first_receipt(push.seq)
            self._pushes[Outcome.DUPLICATE] += 1
            return Decided(receipt)
        if push.pulled.incarnation == self.stamp.incarnation and push.seq > pusher.last_seq + 1:
            raise BadSequence(
                f"{push.seq} skips {pusher.last_seq + 1}",
                field="seq",
                fix="send pushes in order; after a restart join again with the last seq used",
            )
        if push.assign:
            return self._assign(checked)
        decision = admit(
            self.consistency,
            pulled=push.pulled,
            now=self.stamp,
            pusher=push.pusher,
            steps=self.ledger.steps(push.pusher),
            waiting=self._round,
            round_began=self._round_began,
        )
        match decision.verdict:
            case Verdict.INVALID:
                raise InvalidArgument(
                    decision.reason, field="clock", fix="push with the clock that the pull returned"
                )
            case Verdict.WAIT:
                if self.consistency.gathers:
                    self._keep(checked)
                return decision
            case Verdict.STALE:
                return Decided(self._refuse_stale(push, decision.reason))
            case Verdict.APPLY:
                return self._apply(checked, decision, room)

    def withdraw(self, pusher: str) -> None:
        """Forget a push that waits."""
        self._round.pop(pusher, None)

    def refuse(self, pusher: str, reason: str) -> None:
        """Note a push that was refused for bad input."""
        self._pushes["INVALID"] += 1
        self._events.add("invalid", pusher, reason)

    # ---- pullers and pushers

    def join(
        self,
        pusher: str,
        *,
        lease_s: float,
        last_seq: int = 0,
        session: str = "",
        kind: PusherKind = "trainer",
    ) -> Joined:
        """Make a pusher live for `lease_s` seconds from its latest call.

        A push that waits is given up if it is another session's, or not after `last_seq`. Idempotent.

        Args:
            pusher: its name in the job.
            lease_s: seconds after which a silent pusher stops counting.
            last_seq: the last seq that the pusher has used, where it knows better than the shard.
            session: a text of the client's own. While a name is live it belongs to its session.
            kind: where the pusher runs.

        Raises:
            Conflict: the name is live in another session, and that one's connections have not ended.
        """
        if not pusher:
            raise InvalidArgument("a pusher's name is empty", field="pusher")
        if not last_seq >= 0:
            raise BadSequence(f"must be at least 0, got {last_seq}", field="last_seq")
        if not 0.0 < lease_s < math.inf:
            raise InvalidArgument(f"must be a positive number of seconds, got {lease_s!r}", field="lease_s")
        record = self.ledger.enter(pusher)
        if pusher in self.ledger.live() and not record.cut_off:
            record.check_session(pusher, session)
        waiting = self._round.get(pusher)
        if waiting is not None and (session != record.session or waiting.push.seq <= last_seq):
            self.withdraw(pusher)
        record.session, record.kind, record.cut_off = session, kind, False
        record.last_seq = max(record.last_seq, last_seq)
        self.ledger.renew(pusher, lease_s)
        return Joined(self.stamp, record.last_seq, self.restored_clock)

    def renew(self, pusher: str, session: str = "") -> None:
        """Renew a pusher's lease; one that had fallen silent comes back level with the slowest.

        Raises:
            NotFound, Conflict: the pusher has not joined, or another session has taken its name over.
        """
        record = self.ledger[pusher]
        record.check_session(pusher, session)
        record.cut_off = False
        self.ledger.renew(pusher)

    def cut_off(self, pusher: str, session: str) -> None:
        """Note that a session's last connection has ended: another one may take its name before its lease runs out."""
        record = self.ledger.get(pusher)
        if record is not None and record.session == session:
            record.cut_off = True

    def leave(self, pusher: str, session: str = "") -> None:
        """Stop counting a pusher; its seq is remembered. One that another session has taken over is left alone."""
        record = self.ledger.get(pusher)
        if record is not None and record.session != session:
            return
        self.ledger.drop(pusher)
        self._round.pop(pusher, None)
        self._pulled.pop(pusher, None)

    # ---- reading

    def read(self, *, training: bool = True) -> dict[str, Array]:
        """The shard's parameters, as `Store.point`, laid out as `Partition.layout` says.

        On the CPU they may be views of the live buffers: copy them before the next push is offered.
        """
        return {dtype: values.cpu().numpy() for dtype, values in self.store.point(training=training).items()}

    def note_pull(self, pusher: str, *, asked: int = 0, answered: int | None = None) -> None:
        """Account for a pull; with delay compensation keep the parameters, one copy for all who pull at this clock.

        `asked` bytes named rows, and `answered` bytes of parameters were returned, or all; a reader's name is "".
        """
        self._bytes_out += self.store.parameter_bytes if answered is None else answered
        self._bytes_in += asked
        if not pusher or not self.consistency.delay_compensation:
            return
        shared = next((kept for kept in self._pulled.values() if kept[0] == self.stamp), None)
        self._pulled[pusher] = shared or (
            self.stamp,
            {dtype: point.clone() for dtype, point in self.store.point(training=True).items()},
        )

    def state(self) -> ShardState:
        """Everything that a restart needs; on the CPU views of the live buffers."""
        segments, arrays = self.store.state()
        pushers, constants = self.ledger.states(), dict(self.store.constants)
        return ShardState(self.index, self.stamp, segments, arrays, pushers, constants)

    def statistics(self) -> ShardStatistics:
        """An immutable account of what the shard has done and how it stands; without `seen`."""
        expiries = self.ledger.expiries()  # first, as it may add events
        pushers = [(name, self.ledger[name]) for name in self.ledger.live()]
        return ShardStatistics(
            shard=self.index,
            stamp=self.stamp,
            pushes=dict(self._pushes),
            staleness=dict(self._staleness),
            apply_seconds=self._apply_seconds.read(),
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            state_bytes=self.store.state_bytes,
            live=tuple(name for name, _ in pushers),
            kernel=next((kernel.executor for kernel in self.store.kernels), "none"),
            trainers=sum(pusher.kind == "trainer" for _, pusher in pushers),
            silent=len(self.ledger.silent()),
            lease_expiries=expiries,
            waiting=self.waiting,
            push_seconds=self.push_seconds.read(),
            queue_seconds=self.queue_seconds.read(),
            pushers=tuple(PusherStatistics(name, p.last_seq, p.pushed_at) for name, p in pushers),
            events=self._events.recent(),
        )

    # ---- inside

    def _check_values(self, push: Push) -> None:
        """Check what only concerns values that are assigned."""
        slots = ("w", *self.rule.slot_names)
        if push.assign not in slots:
            raise InvalidArgument(
                f"the job's rule has no slot {push.assign!r}",
                field="assign",
                fix=f"one of {', '.join(slots)}",
            )
        for name, values in push.gradients.items():
            check_value(self.partition.spec(name), values)
        for name, updates in push.updates.items():
            self.partition.spec(name)
            if not updates >= 0:
                raise InvalidArgument(f"must be at least 0, got {updates}", field=f"updates[{name}]")

    def _assign(self, checked: CheckedPush) -> Decided:
        """Assign values now, in every mode: it is an update, but no step of its pusher."""
        push = checked.push
        if push.pulled.incarnation != self.stamp.incarnation:
            return Decided(self._refuse_stale(push, "pulled before the shard was restored"))
        self.store.assign(push.assign, checked.gradients, push.updates, push.constants)
        staleness = max(0, self.stamp.clock - push.pulled.clock)
        self.stamp = Stamp(self.stamp.incarnation, self.stamp.clock + 1)
        self._bytes_in += checked.nbytes
        receipt = Receipt(Outcome.APPLIED, self.stamp, staleness, f"assigned {push.assign}")
        self.ledger[push.pusher].record(push.seq, receipt, self._wall(), steps=0)
        self._pushes[receipt.outcome] += 1
        return Decided(receipt)

    def _fell_silent(self, pusher: str) -> None:
        """Free what was kept for a pusher that may never come back; if it does, its next push goes uncompensated."""
        self._pulled.pop(pusher, None)
        self._events.add("silent", pusher, "its lease ran out without its having left")

    def _keep(self, checked: CheckedPush) -> None:
        """Keep a push for the end of its round."""
        waiting = {**self._round, checked.push.pusher: checked}
        nbytes = sum(kept.nbytes for kept in waiting.values())
        if nbytes > self._waiting_bytes:
            raise LimitExceeded(
                f"{nbytes} bytes of gradients would wait for their round, at most {self._waiting_bytes} may",
                field="waiting_bytes",
                fix="push with fewer workers, or allow more",
            )
        self._round = waiting

    def _record(self, push: Push, receipt: Receipt) -> Receipt:
        self.ledger[push.pusher].record(push.seq, receipt, self._wall())
        self._pushes[receipt.outcome] += 1
        self._staleness[min(receipt.staleness, STALENESS_CAP)] += 1
        return receipt

    def _refuse_stale(self, push: Push, reason: str) -> Receipt:
        receipt = Receipt(Outcome.STALE, self.stamp, max(0, self.stamp.clock - push.pulled.clock), reason)
        self._events.add("stale", push.pusher, reason)
        if push.seq == self.ledger[push.pusher].last_seq + 1:
            return self._record(push, receipt)
        # From before the shard was restored, and so ahead of what it knows: joining again mends the count.
        self._pushes[Outcome.STALE] += 1
        return receipt

    def _apply(self, checked: CheckedPush, decision: Decision, room: Room | None) -> Decided:
        members = {**self._round, checked.push.pusher: checked}
        self._round = {}
        pushes = [members[name] for name in sorted(members)]
        began = time.perf_counter()
        gradients = (
            self._compensated(checked)
            if len(pushes) == 1
            else mean([member.gradients for member in pushes], self.store.spans)
        )
        constants = {name: _mean_constants(pushes, name) for name in gradients}
        copy = self.store.step(gradients, constants, decision.lr_scale, room)
        self._apply_seconds.add(time.perf_counter() - began)
        before, self.stamp = self.stamp, Stamp(self.stamp.incarnation, self.stamp.clock + 1)
        self._round_began = self.stamp.clock
        for member in pushes:
            self._bytes_in += member.nbytes
            staleness = before.clock - member.push.pulled.clock
            self._record(member.push, Receipt(Outcome.APPLIED, self.stamp, staleness, decision.reason))
        return Decided(self.ledger[checked.push.pusher].receipts[checked.push.seq], copy)

    def _compensated(self, checked: CheckedPush) -> Mapping[str, Loaded]:
        """The gradients, corrected where the mode asks for it and the pulled parameters are known."""
        weight = self.consistency.delay_compensation
        stamp, pulled = self._pulled.get(checked.push.pusher, (None, {}))
        if not weight or stamp != checked.push.pulled or stamp == self.stamp:
            return checked.gradients
        return self.store.compensated(checked.gradients, pulled, weight)


def _mean_constants(pushes: list[CheckedPush], tensor: str) -> dict[str, float]:
    """The constants that the members give this tensor, each the mean of those who give it; its rate is "lr"."""
    given: dict[str, list[float]] = {}
    for push in (checked.push for checked in pushes):
        rate = push.rates.get(tensor, push.lr)
        for name, value in push.constants.get(tensor, {}).items():
            given.setdefault(name, []).append(value)
        if rate is not None:
            given["lr"] = [*given.get("lr", []), rate]
    return {name: sum(values) / len(values) for name, values in given.items()}
