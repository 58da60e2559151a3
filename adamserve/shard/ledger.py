"""What a shard remembers of its pushers: sessions, steps, and the receipts by which a push is applied once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from adamserve.errors import BadSequence, Conflict, NotFound
from adamserve.values import Array, Outcome, PusherKind, PusherState, Receipt

RECEIPTS_KEPT = 64
"""Receipts kept for each pusher, to answer its retries with."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What came of a push that is decided.

    Attributes:
        receipt: the answer.
        bfloat16: a copy of the parameters that the update wrote along the way, as `Store.step` returns it.
    """

    receipt: Receipt
    bfloat16: Array | None = None


@dataclass(slots=True)
class Pusher:
    """One pusher.

    Attributes:
        last_seq: its last push that was decided, or given up.
        steps: its pushes that were decided, or as many as the slowest had when it joined.
        session: the session that its name belongs to while it is live.
        kind: where it runs.
        pushed_at: when its last push was decided, in seconds since 1970; None before the first.
        receipts: the newest ones, by seq.
    """

    last_seq: int = 0
    steps: int = 0
    session: str = ""
    kind: PusherKind = "trainer"
    pushed_at: float | None = None
    receipts: OrderedDict[int, Receipt] = field(default_factory=OrderedDict)

    def check_session(self, name: str, session: str) -> None:
        """Check that a call comes from the session that the name belongs to.

        Raises:
            Conflict: it comes from another one.
        """
        if self.session != session:
            raise Conflict(
                f"the name {name!r} belongs to another client's session",
                field="pusher",
                fix="give every client a pusher name of its own",
            )

    def first_receipt(self, seq: int) -> Receipt:
        """Answer a push that was decided before: as the first time, and DUPLICATE if it was applied then.

        Raises:
            BadSequence: the receipt is no longer kept, so nobody knows whether the push was applied.
        """
        receipt = self.receipts.get(seq)
        if receipt is None:
            raise BadSequence(
                f"push {seq} was decided or given up before, and its outcome is no longer known",
                field="seq",
                fix=f"pull, and go on with push {self.last_seq + 1}",
            )
        if receipt.outcome is Outcome.APPLIED:
            return replace(receipt, outcome=Outcome.DUPLICATE)
        return receipt

    def record(self, seq: int, receipt: Receipt, at: float, *, steps: int = 1) -> None:
        """Note that a push is decided; `steps` says for how many steps it counts."""
        self.last_seq = seq
        self.steps += steps
        self.pushed_at = at
        self.receipts[seq] = receipt
        while len(self.receipts) > RECEIPTS_KEPT:
            self.receipts.popitem(last=False)


class Ledger:
    """Every pusher that a shard has heard of, live or not. Not thread-safe."""

    def __init__(self, states: Mapping[str, PusherState]) -> None:
        self._pushers = {
            name: Pusher(
                state.last_seq, state.steps, state.session, state.kind, receipts=OrderedDict(state.receipts)
            )
            for name, state in states.items()
        }

    def __getitem__(self, name: str) -> Pusher:
        """The pusher of that name.

        Raises:
            NotFound: it has not joined.
        """
        try:
            return self._pushers[name]
        except KeyError:
            raise NotFound(f"pusher {name!r} has not joined", field="pusher", fix="join first") from None

    def get(self, name: str) -> Pusher | None:
        """The pusher of that name, or None."""
        return self._pushers.get(name)

    def enter(self, name: str) -> Pusher:
        """The pusher of that name, a new one where there was none."""
        return self._pushers.setdefault(name, Pusher())

    def steps(self, names: Iterable[str]) -> dict[str, int]:
        """Steps by pusher, in the order of the names."""
        return {name: self._pushers[name].steps for name in sorted(names)}

    def states(self) -> dict[str, PusherState]:
        """What a checkpoint keeps of each."""
        return {
            name: PusherState(p.last_seq, p.steps, p.session, p.kind, dict(p.receipts))
            for name, p in self._pushers.items()
        }
