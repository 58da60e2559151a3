"""May this push be applied now? Pure decisions from clocks; each returns its reason.

Three modes: `Async` applies on arrival (and may refuse, down-weight or compensate stale gradients), `SSP`
lets a pusher run a bounded number of steps ahead of the slowest live one (Ho et al. 2013), `BSP` averages
one push of every live pusher and steps once. `Leases` says who is live.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Literal

from adamserve.errors import InvalidArgument
from adamserve.values import Config, Stamp


@dataclass(frozen=True, kw_only=True, slots=True)
class Async:
    """Apply every push as it arrives.

    Attributes:
        max_staleness: refuse a push that is more updates behind than this; None refuses none.
        staleness_lr: "inverse" divides the rate by max(1, staleness) (Zhang et al. 2016, "Staleness-aware
            async-SGD for distributed deep learning", equation 5); "none" leaves it.
        delay_compensation: lambda of g + lambda*g*g*(w - w_pulled), a first-order estimate of the gradient at
            the present w (Zheng et al. 2017, "Asynchronous stochastic gradient descent with delay
            compensation", equation 10). 0 switches it off. It keeps one copy of the parameters for each
            clock that some pusher last pulled at.
    """

    max_staleness: int | None = None
    staleness_lr: Literal["none", "inverse"] = "none"
    delay_compensation: float = 0.0

    def __post_init__(self) -> None:
        if self.max_staleness is not None and not self.max_staleness >= 0:
            raise InvalidArgument(
                f"must be at least 0 updates or None, got {self.max_staleness!r}", field="max_staleness"
            )
        if self.staleness_lr not in ("none", "inverse"):
            raise InvalidArgument(
                f"got {self.staleness_lr!r}", field="staleness_lr", fix="give 'none' or 'inverse'"
            )
        if not 0.0 <= self.delay_compensation < float("inf"):
            raise InvalidArgument(
                f"must be finite and at least 0, got {self.delay_compensation!r}", field="delay_compensation"
            )

    def __str__(self) -> str:
        return "async"


@dataclass(frozen=True, kw_only=True, slots=True)
class SSP:
    """Stale synchronous parallel: start a step only while at most `bound` steps ahead of the slowest live pusher.

    Source: Ho et al. 2013, "More effective distributed ML via a stale synchronous parallel parameter server".
    The training pull waits as the push does, so a gradient never lacks an update that the bound promises it.
    """

    bound: int

    def __post_init__(self) -> None:
        if not self.bound >= 0:
            raise InvalidArgument(f"must be at least 0 steps, got {self.bound!r}", field="ssp bound")

    def __str__(self) -> str:
        return f"ssp:{self.bound}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BSP:
    """Bulk synchronous parallel: average one push of every live pusher, then step once."""

    def __str__(self) -> str:
        return "bsp"


Consistency = Async | SSP | BSP


def parse(text: str, **async_options: Any) -> Consistency:
    """Read "async", "ssp:S" or "bsp"; options that are not None belong to async alone.

    Raises:
        InvalidArgument: names the field `consistency`, or the option that the mode does not take.
    """
    given = {name: value for name, value in async_options.items() if value is not None}
    name, _, bound = text.strip().lower().partition(":")
    if name == "async" and not bound:
        return Async(**given)
    if given:
        raise InvalidArgument(
            f"is an option of async, not of {text!r}",
            field=next(iter(given)),
            fix="leave it out, or use async",
        )
    if name == "bsp" and not bound:
        return BSP()
    if name == "ssp" and bound.isdecimal():
        return SSP(bound=int(bound))
    raise InvalidArgument(
        f"{text!r} is not a consistency mode",
        field="consistency",
        fix="give async, bsp, or ssp:S with S steps, as in ssp:2",
    )


def to_dict(mode: Consistency) -> dict[str, Any]:
    """The mode as a JSON object that `from_dict` reads."""
    return {"mode": type(mode).__name__.lower(), **asdict(mode)}


def from_dict(config: Config) -> Consistency:
    """The mode that `to_dict` wrote."""
    options = dict(config)
    kinds: Mapping[str, Callable[..., Consistency]] = {"async": Async, "ssp": SSP, "bsp": BSP}
    return kinds[options.pop("mode")](**options)


class Verdict(Enum):
    """What to do with a push."""

    APPLY = "apply"
    WAIT = "wait"
    STALE = "stale"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, its reason in words, and the factor that the push's rate is multiplied by."""

    verdict: Verdict
    reason: str
    lr_scale: float = 1.0


def admit(
    mode: Consistency,
    *,
    pulled: Stamp,
    now: Stamp,
    pusher: str,
    steps: Mapping[str, int],
    waiting: Collection[str] = (),
) -> Decision:
    """Decide whether a push may be applied now.

    Args:
        mode: the job's consistency mode.
        pulled: stamp that the push's parameters were pulled at.
        now: the shard's stamp at arrival.
        pusher: who pushes; a key of `steps`.
        steps: pushes decided so far, for every live pusher.
        waiting: pushers whose push for the present round is here already (bsp).
    """
    staleness = now.clock - pulled.clock
    if pulled.incarnation < now.incarnation:
        return Decision(
            Verdict.STALE,
            f"pulled in incarnation {pulled.incarnation}, but the shard was restored and is in"
            f" incarnation {now.incarnation} at clock {now.clock}",
        )
    if pulled.incarnation > now.incarnation or staleness < 0:
        return Decision(
            Verdict.INVALID,
            f"pulled at incarnation {pulled.incarnation} clock {pulled.clock}, but the shard is only at"
            f" incarnation {now.incarnation} clock {now.clock}",
        )
    match mode:
        case Async():
            if mode.max_staleness is not None and staleness > mode.max_staleness:
                return Decision(
                    Verdict.STALE, f"stale by {staleness} updates, at most {mode.max_staleness} are allowed"
                )
            scale = 1.0 / max(1, staleness) if mode.staleness_lr == "inverse" else 1.0
            return Decision(Verdict.APPLY, f"stale by {staleness} updates", scale)
        case SSP():
            gate = may_start(mode, pusher=pusher, steps=steps)
            return gate if gate.verdict is Verdict.WAIT else Decision(Verdict.APPLY, gate.reason)
        case BSP():
            if staleness > 0:
                return Decision(Verdict.STALE, f"round {pulled.clock} is over, the shard is at {now.clock}")
            missing = sorted(set(steps) - set(waiting) - {pusher})
            if missing:
                return Decision(Verdict.WAIT, f"round {now.clock} waits for {', '.join(missing)}")
            members = len(set(waiting) | {pusher})
            return Decision(Verdict.APPLY, f"mean of {members} push{'es' if members > 1 else ''}")


def may_start(mode: Consistency, *, pusher: str, steps: Mapping[str, int]) -> Decision:
    """Decide whether a pusher may start its next step (ssp; the other modes never hold one back)."""
    if not isinstance(mode, SSP) or pusher not in steps:
        return Decision(Verdict.APPLY, "no bound on steps")
    slowest = min(steps, key=lambda name: (steps[name], name))
    ahead = steps[pusher] - steps[slowest]
    if ahead > mode.bound:
        return Decision(
            Verdict.WAIT,
            f"{ahead} steps ahead of {slowest} at step {steps[slowest]}, at most {mode.bound} are allowed",
        )
    return Decision(Verdict.APPLY, f"{ahead} steps ahead of the slowest")


SILENT_S = 600.0
"""How long a pusher whose lease ran out counts as silent; after that it counts as gone for good."""


def check_lease(lease_s: float) -> None:
    """Check a lease's length.

    Raises:
        InvalidArgument: it is not a positive, finite number of seconds.
    """
    if not 0.0 < lease_s < float("inf"):
        raise InvalidArgument(f"must be a positive number of seconds, got {lease_s!r}", field="lease_s")


class Leases:
    """Who is live: each pusher's lease, renewed by whatever it does. Not thread-safe.

    A pusher that falls silent stops counting when its lease runs out, at most `lease_s` seconds later.

    Args:
        now: clock in seconds.
        ended: told the name of each pusher whose lease has run out, once that is noticed.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, ended: Callable[[str], None] = lambda pusher: None
    ) -> None:
        self._now = now
        self._tell = ended
        self._ends: dict[str, float] = {}
        self._length: dict[str, float] = {}
        self._ended: set[str] = set()
        self._expiries = 0

    def grant(self, pusher: str, lease_s: float) -> None:
        """Start (or lengthen) a lease of `lease_s` seconds.

        Raises:
            InvalidArgument: `lease_s` is not a positive, finite number of seconds.
        """
        check_lease(lease_s)
        self._note_ended()
        self._length[pusher] = lease_s
        self._ends[pusher] = self._now() + lease_s
        self._ended.discard(pusher)

    def renew(self, pusher: str) -> None:
        """Start the pusher's lease anew; one that has none is left without."""
        if pusher in self._length:
            self._note_ended()
            self._ends[pusher] = self._now() + self._length[pusher]
            self._ended.discard(pusher)

    def drop(self, pusher: str) -> None:
        """End a lease now."""
        self._note_ended()
        self._ends.pop(pusher, None)
        self._length.pop(pusher, None)
        self._ended.discard(pusher)

    def live(self) -> list[str]:
        """Pushers whose lease runs, by name."""
        now = self._now()
        return sorted(name for name, end in self._ends.items() if end > now)

    def silent(self) -> list[str]:
        """Pushers whose lease ran out in the last `SILENT_S` seconds, and that have neither come back nor left."""
        now = self._now()
        return sorted(name for name, end in self._ends.items() if now - SILENT_S < end <= now)

    def expiries(self) -> int:
        """How many leases have run out so far; one that was ended or renewed in time is none."""
        self._note_ended()
        return self._expiries

    def _note_ended(self) -> None:
        now = self._now()
        fresh = {name for name, end in self._ends.items() if end <= now} - self._ended
        self._ended |= fresh
        self._expiries += len(fresh)
        for pusher in sorted(fresh):
            self._tell(pusher)

    def next_expiry_s(self) -> float | None:
        """Seconds until the next running lease ends, or None when none runs."""
        now = self._now()
        return min((end - now for end in self._ends.values() if end > now), default=None)
