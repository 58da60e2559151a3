"""May this push be applied now? Pure decisions from clocks; each returns its reason.

Beside `Async`, `SSP` and `BSP`, a mode is a subclass of `Consistency`, made known by `register` or by an entry point of
the group `adamserve.modes`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Self

from adamserve.errors import Conflict, InvalidArgument
from adamserve.values import Config, Stamp

ENTRY_POINTS = "adamserve.modes"
"""Group of entry points in which packages name their modes: NAME = "module:Class"."""


class Verdict(Enum):
    """What to do with a push."""

    APPLY = "apply"
    WAIT = "wait"
    STALE = "stale"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, its reason in words, and a factor of the push's rate."""

    verdict: Verdict
    reason: str
    lr_scale: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """What a mode decides a push by.

    Attributes:
        pusher: who pushes; a key of `steps`.
        clock: the shard's clock, in updates.
        staleness: updates between the pull and the arrival; never negative.
        steps: pushes decided so far, for every live pusher.
        waiting: pushers whose push for the present round is here already.
    """

    pusher: str
    clock: int
    staleness: int
    steps: Mapping[str, int]
    waiting: Collection[str] = ()


class Consistency(ABC):
    """A mode: a frozen dataclass, whose fields are its options.

    Attributes:
        name: what users call it, lower case.
        gathers: a push that waits is kept, and the one that ends the wait applies the mean of all that are kept.
        delay_compensation: see `Async`; 0 everywhere else.
    """

    name: ClassVar[str]
    gathers: ClassVar[bool] = False
    delay_compensation: float = 0.0

    @abstractmethod
    def admit(self, arrival: Arrival) -> Decision:
        """Decide on a push of the shard's present incarnation: APPLY, WAIT or STALE."""

    def may_start(self, pusher: str, steps: Mapping[str, int]) -> Decision:
        """Decide whether a pusher may pull for its next step: APPLY or WAIT; `steps` is as in `Arrival`."""
        return Decision(Verdict.APPLY, "no bound on steps")

    @classmethod
    def parse(cls, argument: str, options: Mapping[str, Any]) -> Self:
        """Read what a user wrote after "NAME:"; raises InvalidArgument as the function `parse`."""
        if argument:
            raise _unknown(f"{cls.name}:{argument}")
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type] # `register` has checked it
        for option in [option for option in options if option not in known]:
            raise InvalidArgument(
                f"is an option of async, not of {cls.name!r}", field=option, fix="leave it out, or use async"
            )
        return cls(**options)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class Async(Consistency):
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

    name: ClassVar[str] = "async"
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

    def admit(self, arrival: Arrival) -> Decision:
        """As `Consistency.admit`."""
        staleness = arrival.staleness
        if self.max_staleness is not None and staleness > self.max_staleness:
            return Decision(
                Verdict.STALE, f"stale by {staleness} updates, at most {self.max_staleness} are allowed"
            )
        scale = 1.0 / max(1, staleness) if self.staleness_lr == "inverse" else 1.0
        return Decision(Verdict.APPLY, f"stale by {staleness} updates", scale)


@dataclass(frozen=True, kw_only=True)
class SSP(Consistency):
    """Stale synchronous parallel: start a step only while at most `bound` steps ahead of the slowest live pusher.

    The training pull waits as the push does, so a gradient never lacks an update that the bound promises it (Ho et al.
    2013, "More effective distributed ML via a stale synchronous parallel parameter server").
    """

    name: ClassVar[str] = "ssp"
    bound: int

    def __post_init__(self) -> None:
        if not self.bound >= 0:
            raise InvalidArgument(f"must be at least 0 steps, got {self.bound!r}", field="ssp bound")

    @classmethod
    def parse(cls, argument: str, options: Mapping[str, Any]) -> Self:
        """As `Consistency.parse`."""
        if not argument.isdecimal():
            raise _unknown(f"{cls.name}:{argument}" if argument else cls.name)
        return super().parse("", {**options, "bound": int(argument)})

    def admit(self, arrival: Arrival) -> Decision:
        """As `Consistency.admit`."""
        return self.may_start(arrival.pusher, arrival.steps)

    def may_start(self, pusher: str, steps: Mapping[str, int]) -> Decision:
        """As `Consistency.may_start`."""
        if pusher not in steps:
            return super().may_start(pusher, steps)
        slowest = min(steps, key=lambda name: (steps[name], name))
        ahead = steps[pusher] - steps[slowest]
        if ahead > self.bound:
            return Decision(
                Verdict.WAIT,
                f"{ahead} steps ahead of {slowest} at step {steps[slowest]}, at most {self.bound} are allowed",
            )
        return Decision(Verdict.APPLY, f"{ahead} steps ahead of the slowest")

    def __str__(self) -> str:
        return f"ssp:{self.bound}"


@dataclass(frozen=True, kw_only=True)
class BSP(Consistency):
    """Bulk synchronous parallel: average one push of every live pusher, then step once."""

    name: ClassVar[str] = "bsp"
    gathers: ClassVar[bool] = True

    def admit(self, arrival: Arrival) -> Decision:
        """As `Consistency.admit`."""
        if arrival.staleness > 0:
            pulled = arrival.clock - arrival.staleness
            return Decision(Verdict.STALE, f"round {pulled} is over, the shard is at {arrival.clock}")
        missing = sorted(set(arrival.steps) - set(arrival.waiting) - {arrival.pusher})
        if missing:
            return Decision(Verdict.WAIT, f"round {arrival.clock} waits for {', '.join(missing)}")
        members = len({*arrival.waiting, arrival.pusher})
        return Decision(Verdict.APPLY, f"mean of {members} push{'es' if members > 1 else ''}")


def admit(
    mode: Consistency,
    *,
    pulled: Stamp,
    now: Stamp,
    pusher: str,
    steps: Mapping[str, int],
    waiting: Collection[str] = (),
    round_began: int | None = None,
) -> Decision:
    """Decide whether a push may be applied now: by incarnations, which no mode may overrule, then by the mode.

    Args:
        mode: the job's consistency mode.
        pulled: stamp that the push's parameters were pulled at.
        now: the shard's stamp at arrival.
        pusher, steps, waiting: as in `Arrival`.
        round_began: clock at which the round began, where a mode gathers one: values assigned since then do not end it.
            None is now.
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
    if mode.gathers and round_began is not None and pulled.clock >= round_began:
        staleness = 0
    return mode.admit(
        Arrival(pusher=pusher, clock=now.clock, staleness=staleness, steps=steps, waiting=waiting)
    )


# ---- modes by name

_MODES: dict[str, type[Consistency]] = {mode.name: mode for mode in (Async, SSP, BSP)}


def register(mode: type[Consistency]) -> type[Consistency]:
    """Make a mode known by its name, in this process. Idempotent; usable as a decorator.

    Processes of a service find a mode by its entry point, so a package that defines one declares it there.

    Raises:
        InvalidArgument: it is not a frozen dataclass with a name.
        Conflict: another class has that name.
    """
    name = getattr(mode, "name", "")
    if not (is_dataclass(mode) and mode.__dataclass_params__.frozen and name and name == name.lower()):
        raise InvalidArgument(
            "is not a mode", field=mode.__qualname__, fix="make it a frozen dataclass with a lower-case name"
        )
    known = _MODES.setdefault(name, mode)
    if known is not mode:
        raise Conflict(f"{known.__module__}.{known.__qualname__} is called {name!r} already", field=name)
    return mode


def by_name(name: str) -> type[Consistency]:
    """The mode of that name; raises InvalidArgument if there is none, or its package cannot be imported."""
    if name not in _MODES:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            try:
                register(point.load())
            except Exception as error:
                package = point.dist.name if point.dist is not None else point.value
                raise InvalidArgument(
                    f"mode {name!r} of {package} cannot be loaded: {error}", field="consistency"
                ) from error
    if name not in _MODES:
        raise _unknown(name)
    return _MODES[name]


def parse(text: str, **options: Any) -> Consistency:
    """Read "async", "ssp:S", "bsp", or "NAME" or "NAME:ARGUMENT" of another package's mode.

    Options that are None are left out (today async alone has any).

    Raises:
        InvalidArgument: names the field `consistency`, or the option that the mode does not take.
    """
    name, _, argument = text.strip().lower().partition(":")
    return by_name(name).parse(argument, {key: value for key, value in options.items() if value is not None})


def to_dict(mode: Consistency) -> dict[str, Any]:
    """The mode as a JSON object that `from_dict` reads."""
    return {"mode": mode.name, **asdict(mode)}  # type: ignore[call-overload] # `register` has checked it


def from_dict(config: Config) -> Consistency:
    """The mode that `to_dict` wrote; raises InvalidArgument if there is none of that name with those options."""
    options = dict(config)
    name = options.pop("mode")
    try:
        return by_name(name)(**options)
    except TypeError as error:
        raise InvalidArgument(f"options of mode {name!r} do not fit: {error}", field="consistency") from None


def _unknown(text: str) -> InvalidArgument:
    return InvalidArgument(
        f"{text!r} is not a consistency mode",
        field="consistency",
        fix="give async, bsp, or ssp:S with S steps, as in ssp:2",
    )
