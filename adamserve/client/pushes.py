"""The pushes of one client: which is the next, how many are under way, and what becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Self

from adamserve.client.gradients import Gradients, Prepared
from adamserve.client.session import Session
from adamserve.client.wire_link import Aborted, Pull, PushAnswer
from adamserve.errors import InvalidArgument, Unavailable
from adamserve.shard import sparse
from adamserve.shard.checks import check_rates
from adamserve.values import Array, Clocks, Constants, Deadline, Gradient, JobReceipt, Outcome, Span, Stamp


@dataclass(frozen=True, slots=True)
class Terms:
    """What a push says at its end: its rates, its constants, and with values that are assigned their update counts."""

    lr: float | None = None
    rates: Mapping[str, float] | None = None
    constants: Constants | None = None
    updates: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        check_rates(self.lr, self.rates or {})


class OutgoingPush:
    """One push, from its first gradient to the shards' answers. Nothing is applied before its commit.

    Attributes:
        seq, clock, assign: as in `values.Push`, the clock of every shard.
        then: what is pulled after it, in the same exchange.
        deadline: for all of it, the wait for its gradients included.
        gradients: those known so far, by tensor; links read them from the first, however often.
        terms: known after the commit.
        committed, aborted: all gradients are here; it was given up. Neither while they come.
        futures: each shard's answer.
    """

    def __init__(
        self, pushes: Pushes, seq: int, clock: Clocks, then: Pull | None, deadline: Deadline, assign: str
    ) -> None:
        self.seq = seq
        self.assign = assign
        self.clock = clock
        self.deadline = deadline
        self.gradients: dict[str, Prepared] = {}
        self.terms = Terms()
        self.committed = self.aborted = False
        self.futures: list[Future[PushAnswer]] = []
        self.then = then
        self._pushes = pushes
        self._changed = threading.Condition()

    # ---- its gradients

    def add(self, name: str, gradient: Gradient) -> None:
        """Send one tensor's gradient, of any kind that `Client.push` takes; leave it as it is until the push is over.

        Raises:
            InvalidArgument, NotFound: it is wrong, or was added before; names the tensor. The push goes on without it.
        """
        if name in self.gradients:
            raise InvalidArgument("its gradient was added before", field=name)
        checked = self._pushes.gradients.checked(name, gradient, copy=False)
        self.put(name, self._pushes.gradients.prepared(name, checked))

    def put(self, name: str, prepared: Prepared) -> None:
        """As `add`, for a gradient that is checked."""
        with self._changed:
            self.gradients[name] = prepared
            self._changed.notify_all()

    def commit(
        self,
        *,
        lr: float | None = None,
        rates: Mapping[str, float] | None = None,
        constants: Constants | None = None,
    ) -> tuple[JobReceipt, Mapping[str, Array], Clocks]:
        """Say that all gradients are here, and wait for the push and the pull after it; as `Client.push_pull`.

        Raises:
            Unavailable: the deadline passed before the commit, or a shard did not answer.
        """
        self.finish(Terms(lr, rates, constants))
        return self.exchanged()

    def finish(self, terms: Terms) -> None:
        """Say that all gradients are here."""
        with self._changed:
            self.terms, self.committed = terms, not self.aborted
            lost = {name: each.lost for name, each in self.gradients.items() if each.lost is not None}
            self._changed.notify_all()
        if self.aborted:
            self.abort()
            raise Unavailable("the push was given up before its commit", fix="push again")
        self._pushes.gradients.lost.update(lost)
        self._pushes.ended(self)

    def abort(self) -> None:
        """Give the push up before its commit: no shard has applied anything, and its seq is free."""
        self.give_up()
        wait(self.futures)
        self._pushes.ended(self)

    def give_up(self) -> None:
        """As `abort`, without waiting for the links to notice."""
        with self._changed:
            self.aborted = not self.committed
            self._changed.notify_all()

    def parts(self, spans: Mapping[str, Span]) -> Iterator[tuple[Span, Prepared]]:
        """A shard's spans of the gradients, each when it is known, until the push is committed or given up."""
        done = 0
        while True:
            with self._changed:
                while not (self.committed or self.aborted or len(self.gradients) > done):
                    if not self._changed.wait(self.deadline.remaining()):
                        self.aborted = True
                if self.aborted:
                    return
                fresh, ended = list(self.gradients.items())[done:], self.committed
            done += len(fresh)
            for name, prepared in fresh:
                if (span := spans.get(name)) is not None:
                    yield span, prepared._replace(gradient=sparse.part(prepared.gradient, span))
            if ended:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.committed:
            self.abort()

    # ---- its answers

    @property
    def alive(self) -> bool:
        """Whether it can still be committed; if not, its deadline has passed, or a shard has refused it."""
        ended = self.committed or self.aborted or any(future.done() for future in self.futures)
        return not ended

    def done(self) -> bool:
        """Whether every shard has answered."""
        return all(future.done() for future in self.futures)

    def result(self) -> JobReceipt:
        """Wait for every shard's answer; each has its deadline already.

        Raises:
            RolledBack: a shard was restored after the gradients' parameters were pulled.
            AdamServeError: as `Client.push`.
        """
        wait(self.futures)
        self.gradients = {}  # which may be copies
        session = self._pushes.session
        receipts = tuple(future.result().receipt for future in self.futures)
        now = Clocks(receipt.stamp for receipt in receipts)
        session.see(now)
        for receipt, pulled in zip(receipts, self.clock, strict=True):
            if receipt.outcome is Outcome.STALE and receipt.stamp.incarnation > pulled.incarnation:
                raise session.rolled_back(receipt.reason, self.clock, now)
        return JobReceipt(receipts)

    def exchanged(self) -> tuple[JobReceipt, Mapping[str, Array], Clocks]:
        """As `result`, with what was pulled after the push, and its stamps."""
        assert self.then is not None
        receipt = self.result()
        clock = Clocks(pulled for future in self.futures if (pulled := future.result().pulled) is not None)
        self._pushes.session.see(clock)
        self._pushes.session.raise_lost()
        return receipt, self.then.target.result(), clock


class Pushes:
    """Numbers the pushes, bounds how many are under way, and makes the shards agree on their number after an error.

    One thread at a time. `seq` is the last one used.
    """

    def __init__(self, session: Session, gradients: Gradients, most: int) -> None:
        if not most >= 1:
            raise InvalidArgument(f"must be at least 1, got {most}", field="max_in_flight")
        self.seq = 0
        self.session = session
        self.gradients = gradients
        self._most = most
        self._joined = self._spoiled = False
        self._agreed_at = 0
        self._under_way: list[OutgoingPush] = []
        self._stream: OutgoingPush | None = None

    def join(self, deadline: Deadline) -> None:
        """Be live on every shard, and count on from where an earlier client of this name stopped."""
        if not self._joined:
            known = self.session.join(0, deadline)
            self.seq = max(known)
            if min(known) < self.seq:
                self.session.join(self.seq, deadline)
            self._joined = True

    def begin(
        self, clock: Sequence[tuple[int, int]], then: Pull | None, deadline: Deadline, assign: str = ""
    ) -> OutgoingPush:
        """Make room in time for the next push, and a pull after it. `send` alone uses its number up."""
        stamps = self._stamps(clock)
        self._tidy()
        if self._stream is not None:
            raise InvalidArgument("a stream is open", field="stream", fix="commit or abort it first")
        if self._spoiled or self._agreed_at != self.session.restores:
            self.wait()
            restores = self.session.restores
            self.session.join(self.seq, deadline)
            self._agreed_at, self._spoiled = restores, False
        if len(self._under_way) >= self._most:
            wait(self._under_way[0].futures, deadline.remaining())
            self._tidy()
        if len(self._under_way) >= self._most:
            raise Unavailable(f"{self._most} pushes are still under way", field="max_in_flight")
        return OutgoingPush(self, self.seq + 1, stamps, then, deadline, assign)

    def send(self, push: OutgoingPush, *, here: bool) -> OutgoingPush:
        """Send a push to every shard; where the caller waits for it, its own thread may do the last one's part.

        A push without its commit is a stream, which has to end before the next push begins.
        """
        here = here and self.idle  # it overtakes none
        self.seq = push.seq
        self._under_way.append(push)
        self._stream = None if push.committed else push
        *others, last = self.session.links
        push.futures += [link.push(push, here=False) for link in others]
        push.futures.append(last.push(push, here=here))
        return push

    def ended(self, push: OutgoingPush) -> None:
        """Note that a stream is committed, or given up."""
        self._stream = None if self._stream is push else self._stream
        self._tidy()

    @property
    def idle(self) -> bool:
        """Whether no push is under way."""
        return all(push.done() for push in self._under_way)

    def wait(self, within_s: float | None = None) -> None:
        """Wait until no push is under way, whatever became of them; or so long."""
        wait([future for push in self._under_way for future in push.futures], within_s)
        self._tidy()

    def end(self, within_s: float) -> None:
        """Give a stream up, and wait for pushes that are committed, but not for long."""
        if self._stream is not None:
            self._stream.give_up()
        self.wait(within_s)

    def _tidy(self) -> None:
        """Forget the pushes that are over; after an error some shards may have counted a seq, and others not."""
        over = [push for push in self._under_way if push.done()]
        self._under_way = [push for push in self._under_way if not push.done()]
        for push in over:
            push.gradients = {}
            errors = [future.exception() for future in push.futures]
            if any(isinstance(error, Aborted) for error in errors):
                self.seq = push.seq - 1
            elif any(errors) or len(errors) < len(push.clock):
                self._spoiled = True

    def _stamps(self, clock: Sequence[tuple[int, int]]) -> Clocks:
        shards, fix = len(self.session.links), "give what pull returned"
        if len(clock) != shards:
            raise InvalidArgument(f"has {len(clock)} stamps for {shards} shards", field="clock", fix=fix)
        try:
            return Clocks(Stamp(*stamp) for stamp in clock)
        except TypeError:
            raise InvalidArgument("holds what is no stamp", field="clock", fix=fix) from None
