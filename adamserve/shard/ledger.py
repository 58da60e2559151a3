"""What a shard remembers of its pushers: sessions, leases, steps, and the receipts by which a push is applied once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from adamserve.errors import BadSequence, Conflict, NotFound
from adamserve.values import Array, Outcome, PusherKind, PusherState, Receipt

RECEIPTS_KEPT = 64
"""Receipts kept for each pusher, to answer its retries with."""

SILENT_S = 600.0
"""How long a pusher whose lease ran out counts as silent; after that it counts as gone for good."""


@dataclass(frozen=True, slots=True)
class Decided:
    """The answer to a push that is decided, and the copy that its update wrote along the way, as `Store.step` says."""

    receipt: Receipt
    copy: Array | None = None


@dataclass(slots=True)
class Pusher:
    """One pusher: its `PusherState`, when its last push was decided (in seconds since 1970), its lease, and whether its
    last connection has ended."""

    last_seq: int = 0
    steps: int = 0
    session: str = ""
    kind: PusherKind = "trainer"
    receipts: OrderedDict[int, Receipt] = field(default_factory=OrderedDict)
    pushed_at: float | None = None
    lease_s: float = 0.0
    ends_at: float = 0.0
    ended: bool = False
    cut_off: bool = False

    def check_session(self, name: str, session: str) -> None:
        """Raise Conflict unless a call comes from the session that the name belongs to."""
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
    """Every pusher that a shard has heard of. Those whose lease runs are live. Not thread-safe.

    Args:
        states: what a checkpoint kept.
        now: clock in seconds.
        fell_silent: told the name of each pusher whose lease has run out, once that is noticed.
    """

    def __init__(
        self, states: Mapping[str, PusherState], now: Callable[[], float], fell_silent: Callable[[str], None]
    ) -> None:
        self._now = now
        self._fell_silent = fell_silent
        self._expiries = 0
        self._leased: dict[str, Pusher] = {}
        self._pushers = {
            name: Pusher(p.last_seq, p.steps, p.session, p.kind, OrderedDict(p.receipts))
            for name, p in states.items()
        }

    def __getitem__(self, name: str) -> Pusher:
        """The pusher of that name; raises NotFound if it has not joined."""
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

    def steps(self, *also: str) -> dict[str, int]:
        """Steps of every live pusher, and of those named, in the order of the names."""
        return {name: self._pushers[name].steps for name in sorted({*self.live(), *also})}

    def states(self) -> dict[str, PusherState]:
        """What a checkpoint keeps of each."""
        return {
            name: PusherState(p.last_seq, p.steps, p.session, p.kind, dict(p.receipts))
            for name, p in self._pushers.items()
        }

    # ---- leases

    def renew(self, name: str, lease_s: float | None = None) -> None:
        """Start a pusher's lease anew, or one of `lease_s` seconds; one that has none is left without.

        A pusher that was not live comes level with the slowest live one, so that it holds nobody back.
        """
        self._note_ended()
        pusher = self[name]
        if name not in self.live():
            pusher.steps = max(pusher.steps, min(self.steps().values(), default=0))
        if lease_s is not None:
            self._leased[name], pusher.lease_s = pusher, lease_s
        if name in self._leased:
            pusher.ends_at, pusher.ended = self._now() + pusher.lease_s, False

    def drop(self, name: str) -> None:
        """End a lease now."""
        self._note_ended()
        self._leased.pop(name, None)

    def live(self) -> list[str]:
        """Pushers whose lease runs, by name."""
        now = self._now()
        return sorted(name for name, pusher in self._leased.items() if pusher.ends_at > now)

    def silent(self) -> list[str]:
        """Pushers whose lease ran out in the last `SILENT_S` seconds, and that have neither come back nor left."""
        now = self._now()
        return sorted(name for name, p in self._leased.items() if now - SILENT_S < p.ends_at <= now)

    def expiries(self) -> int:
        """How many leases have run out so far; one that was ended or renewed in time is none."""
        self._note_ended()
        return self._expiries

    def next_expiry_s(self) -> float | None:
        """Seconds until the next running lease ends, or None when none runs."""
        now = self._now()
        return min((p.ends_at - now for p in self._leased.values() if p.ends_at > now), default=None)

    def _note_ended(self) -> None:
        now = self._now()
        ended = [name for name, p in self._leased.items() if p.ends_at <= now and not p.ended]
        for name in sorted(ended):
            self._leased[name].ended = True
            self._expiries += 1
            self._fell_silent(name)
