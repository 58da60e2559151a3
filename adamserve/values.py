"""Frozen values that travel between the layers: tensors, clocks, pushes, receipts, states."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from adamserve.errors import InvalidArgument, Unavailable

Array = NDArray[Any]
"""A numpy array of any dtype and shape."""

ITEM_BYTES: Mapping[str, int] = {"float32": 4, "float64": 8}
"""Dtypes that a parameter may have, and their bytes an element."""

GRADIENT_DTYPES: Mapping[str, tuple[str, ...]] = {
    "float32": ("float32", "bfloat16", "float16"),
    "float64": ("float64", "float32", "bfloat16", "float16"),
}
"""Names of the dtypes that a gradient may have, by the parameter's dtype; bfloat16 is that of the package ml_dtypes."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One parameter tensor of a job.

    Attributes:
        stride: the shards keep row r in place r * stride modulo the number of rows; `sparse.table_stride` spreads the
            busy first rows of a table over the shards.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    stride: int = 1

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidArgument("a tensor's name is empty", field="tensors", fix="give every tensor a name")
        if self.dtype not in ITEM_BYTES:
            raise InvalidArgument(
                f"dtype {self.dtype!r} is not supported",
                field=self.name,
                fix="parameters are " + " or ".join(ITEM_BYTES),
            )
        if any(n < 0 for n in self.shape):
            raise InvalidArgument(f"shape {self.shape} has a negative size", field=self.name)
        if self.stride != 1 and (
            not self.shape
            or not 1 < self.stride < self.shape[0] < 1 << 31
            or math.gcd(self.stride, self.shape[0]) != 1
        ):
            raise InvalidArgument(
                f"stride {self.stride} does not give each row of shape {self.shape} a place of its own",
                field=self.name,
                fix="a number below the rows that shares no factor with them, or 1",
            )

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar, 0 where some size is 0."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Elements of a row: of one index of the first dimension; a scalar counts as one row."""
        return math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the parameter, without slots."""
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """A gradient that is zero but for some rows (a row: one index of the first dimension).

    Attributes:
        indices: int32 or int64, of shape (n,): the rows, in any order; rows named twice are summed.
        values: their gradients, of shape (n, *tensor.shape[1:]).
    """

    indices: Array
    values: Array

    @property
    def nbytes(self) -> int:
        """Bytes that travel: 4 a row number, and the values."""
        return 4 * len(self.indices) + self.values.nbytes


Gradient = Array | SparseRows
"""A gradient of a whole tensor, or of some of its rows."""

Constants = Mapping[str, Mapping[str, float]]
"""By tensor, constants of its rule by name, such as {"w": {"lr": 0.1, "beta1": 0.85}}."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of a tensor's elements in row-major order: `start` included, `stop` not."""

    tensor: str
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start


class Stamp(NamedTuple):
    """When, on one shard: its incarnation (grows when a shard is restored) and its clock (updates applied)."""

    incarnation: int
    clock: int


class Clocks(tuple[Stamp, ...]):
    """One stamp a shard, in shard order: what a pull was taken at, and what a push says it was taken at."""

    __slots__ = ()

    def __str__(self) -> str:
        return " ".join(f"{stamp.incarnation}:{stamp.clock}" for stamp in self)

    @property
    def newest(self) -> int:
        """The largest clock among the shards, in updates."""
        return max((stamp.clock for stamp in self), default=0)


class Outcome(StrEnum):
    """What became of a push that was not an error; the worst last."""

    APPLIED = "APPLIED"
    DUPLICATE = "DUPLICATE"
    STALE = "STALE"


@dataclass(frozen=True, slots=True)
class Push:
    """One pusher's gradients for one shard.

    Attributes:
        pusher: who pushes. (job, pusher, seq) names this push for ever.
        seq: the pusher's own counter, from 1, one more with each push.
        pulled: the shard's stamp that the gradient's parameters were pulled at.
        gradients: by tensor, the shard's span of it, 1-D and contiguous, of one of `GRADIENT_DTYPES`; or rows of it, by
            their numbers in the whole tensor, with values of shape (n, width). A tensor left out does not move.
        lr: rate for this push in place of the rule's own, or None.
        rates: by tensor, a rate in place of `lr`.
        constants: by tensor, constants for this push in place of the rule's own.
        assign: "" for gradients. Otherwise `gradients` holds values, in the tensors' own dtypes, that are assigned: to
            the parameters ("w") or to a slot.
        updates: with `assign`, by tensor the number of updates that it counts as having had.
        finite: whoever received the gradients has seen that all values are finite.
        session: the session that the pusher joined with.
    """

    pusher: str
    seq: int
    pulled: Stamp
    gradients: Mapping[str, Gradient]
    lr: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    session: str = ""
    finite: bool = False
    constants: Constants = field(default_factory=dict)
    assign: str = ""
    updates: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What a pull asks one shard for.

    Attributes:
        pusher: who pulls to compute its next gradient, which ssp may hold back; "" for a reader.
        session: the pusher's.
        training: the point where gradients are to be taken (Nesterov's look-ahead) rather than w.
        at_least: wait until the shard's clock has come this far, in updates.
        encoding: how float32 parameters are returned: "float32", "bfloat16" or "float16".
        rows: by tensor, increasing row numbers in the whole tensor: only those are returned.
    """

    pusher: str = ""
    session: str = ""
    training: bool = True
    at_least: int = 0
    encoding: str = "float32"
    rows: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parameters:
    """A shard's answer to a pull, all of it from the moment `stamp` between two updates.

    Attributes:
        arrays: by dtype, the shard's flat buffers, float32 ones in the encoding asked for; if rows were asked for, by
            tensor, as `Store.read_rows` returns them.
    """

    stamp: Stamp
    arrays: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A shard's answer to a push.

    Attributes:
        outcome: a DUPLICATE was applied before, and the rest is the first answer's; STALE changed nothing.
        stamp: the shard's incarnation, and its clock after the update.
        staleness: updates between the pull and the arrival.
        reason: the decision in words, with its numbers.
    """

    outcome: Outcome
    stamp: Stamp
    staleness: int
    reason: str

    @property
    def clock(self) -> int:
        return self.stamp.clock


@dataclass(frozen=True, slots=True)
class JobReceipt:
    """All shards' answers to one push: the worst outcome, and the largest staleness."""

    shards: tuple[Receipt, ...]

    @property
    def outcome(self) -> Outcome:
        return max((r.outcome for r in self.shards), key=list(Outcome).index, default=Outcome.APPLIED)

    @property
    def clock(self) -> Clocks:
        return Clocks(receipt.stamp for receipt in self.shards)

    @property
    def staleness(self) -> int:
        return max((receipt.staleness for receipt in self.shards), default=0)

    @property
    def reason(self) -> str:
        worst = self.outcome
        return "; ".join(f"shard {i}: {r.reason}" for i, r in enumerate(self.shards) if r.outcome is worst)


@dataclass(frozen=True, slots=True)
class Joined:
    """A shard's answer to a pusher that joins.

    Attributes:
        last_seq: the last seq that the shard has decided for this pusher.
        restored_clock: clock at which its present incarnation began; later updates of earlier incarnations are lost.
    """

    stamp: Stamp
    last_seq: int
    restored_clock: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """A span together with the number of updates that it has had (the rule's t)."""

    tensor: str
    start: int
    stop: int
    updates: int


PusherKind = Literal["worker", "trainer"]
"""Where a pusher runs: started by `adamserve.train`, or outside the cluster."""


@dataclass(frozen=True, slots=True)
class PusherState:
    """What a shard remembers of a pusher across a restart.

    Attributes:
        last_seq: its last push that was decided, or given up.
        steps: its pushes that were decided, or as many as the slowest had when it joined.
        session, kind: as it joined.
        receipts: the newest ones, by seq.
    """

    last_seq: int
    steps: int
    session: str = ""
    kind: PusherKind = "trainer"
    receipts: Mapping[int, Receipt] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardState:
    """One consistent cut of a shard: everything that a restart needs.

    Attributes:
        segments: in buffer order; a tensor's segments are adjacent and together are the shard's span of it.
        arrays: slot (or "w") -> tensor -> the span's values, 1-D, of the tensor's dtype. They may be views of live
            buffers: the taker says how long they hold still.
        pushers: by name.
        constants: those that the last push of a tensor brought, where it brought any; its rate is "lr".
    """

    shard: int
    stamp: Stamp
    segments: tuple[Segment, ...]
    arrays: Mapping[str, Mapping[str, Array]]
    pushers: Mapping[str, PusherState] = field(default_factory=dict)
    constants: Constants = field(default_factory=dict)

    @property
    def spans(self) -> list[Span]:
        """The shard's, from its segments."""
        spans: dict[str, Span] = {}
        for s in self.segments:
            spans[s.tensor] = Span(s.tensor, spans.get(s.tensor, s).start, s.stop)
        return list(spans.values())


@dataclass(frozen=True, slots=True)
class Deadline:
    """A fixed point in time, made once where a call enters and passed on."""

    at: float
    now: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, now: Callable[[], float] = time.monotonic) -> Deadline:
        return cls(now() + seconds, now)

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - self.now())

    def check(self, what: str) -> None:
        """Raise Unavailable when the time is up; `what` says what was waited for."""
        if self.now() >= self.at:
            raise Unavailable(
                f"the deadline passed while waiting for {what}", fix="try again, or allow more time"
            )


Config = Mapping[str, Any]
"""A JSON object that describes a rule, a consistency mode or a job."""
