"""The contract of a rule: a frozen, checked value whose equation is the method `_update`.

Constructing a rule loads neither torch nor numpy; `init`, `step_` and `lookahead` bring torch in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from adamserve.errors import InvalidArgument
from adamserve.optim.arith import Ops, Value, Values, flush

if TYPE_CHECKING:
    from torch import Tensor

LrSchedule = Literal["constant", "inverse_sqrt"]
SCHEDULES = ("constant", "inverse_sqrt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule(ABC):
    """An optimizer's update equation with its constants. Immutable; equal constants make equal rules.

    A rule is element-wise and made of IEEE operations only (arith.py), without sums across elements. So `step_` of a
    slice is the slice of `step_`, to the bit, wherever a tensor is cut. The compiled, the eager and the CUDA executor
    give the same bits. Restoring `w`, the slots and `t` resumes exactly.

    Options that every rule takes (the rate is what lr, lr_decay and lr_schedule make of it):

        lr            rate, >= 0.
        lr_schedule   "constant", or "inverse_sqrt": lr / sqrt(t) (the rate of Adam's regret theorem).
        lr_decay      >= 0: lr / (1 + lr_decay (t - 1)), before the schedule (torch.optim.Adagrad's).
        weight_decay  >= 0, decoupled: w -= rate weight_decay w, at the old w (AdamW; Loshchilov & Hutter
                      2019, https://arxiv.org/abs/1711.05101).
        l2            >= 0, the gradient of a penalty: g += l2 w, at the point where g was taken. For the
                      Nesterov rules that is the look-ahead point w + momentum V.
        box           (lo, hi) or None: each update ends by projecting w onto [lo, hi], element by element (the
                      bounded domain of online convex optimisation). Slots and the look-ahead point are not
                      projected.

    An element smaller than the dtype's smallest normal number is stored as 0.

    To write a rule, derive a final, frozen dataclass with a default for every option, and define `slot_names`,
    `_constants`, `_update`, `_fades` and `_moves`. An option that is a number lies in [0, infinity), unless `number`
    declares another domain. A rule that takes gradients at w + momentum velocity sets `has_lookahead`. `_check`,
    `_coast` (a cheaper `_update` with a zero gradient) and `_bound` (a bound of the step) are optional.
    """

    has_lookahead: ClassVar[bool] = False

    lr: float
    lr_schedule: LrSchedule = "constant"
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    l2: float = 0.0
    box: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for option in fields(self):
            _check_option(self, option)
        _check_box(self)
        if self.lr_schedule not in SCHEDULES:
            raise InvalidArgument(
                f"must be one of {', '.join(SCHEDULES)}, got {self.lr_schedule!r}", field="lr_schedule"
            )
        self._check()

    @property
    @abstractmethod
    def slot_names(self) -> tuple[str, ...]:
        """Names of the tensors kept per parameter, in a fixed order; each has the parameter's shape and dtype."""

    def _check(self) -> None:
        """Check what options must be together."""
        return None

    @abstractmethod
    def _constants(self, t: int, rate: float) -> dict[str, float]:
        """Return the numbers that update `t` needs, in float64. The kernel rounds each once to w's dtype.

        Their names do not depend on `t` and `rate`.
        """

    @abstractmethod
    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        """The equation: return (what is added to w, the new slots), from gradient, slots and constants."""

    @abstractmethod
    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        """Return, by slot, the factor by which an update with a zero gradient and these constants multiplies it.

        A slot left out keeps its value. A slot may have a lower limit besides (AdaMax's eps).
        """

    @abstractmethod
    def _moves(self) -> tuple[float, float]:
        """Return how w goes on moving without gradients: (a, b), both 0 if it does not.

        At constant rates, no move is larger than a times the one before. An update multiplies the slot that moves w
        by b.
        """

    def init(self, w: Tensor) -> dict[str, Tensor]:
        """Make a parameter's slots as they are before its first update: contiguous zeros of w's shape and dtype.

        Raises:
            InvalidArgument: `w` is neither float32 nor float64.
        """
        from adamserve.optim.engine import apply

        return apply.init(self, w)

    def step_(
        self,
        w: Tensor,
        g: Tensor,
        slots: Mapping[str, Tensor],
        t: int,
        *,
        lr: float | None = None,
        lr_scale: float = 1.0,
        copy: Tensor | None = None,
    ) -> None:
        """Update `w` and `slots` in place with one gradient.

        Thread-safe for distinct tensors. All arguments are checked first: an error leaves all tensors as they were.
        Values are not checked: a NaN or infinity in `g` spoils its own elements (see `optim.all_finite`). On CUDA it
        returns when the kernel is queued on the current stream.

        Args:
            w: parameter of any shape, float32 or float64, CPU or CUDA. A contiguous one is updated without a copy.
            g: gradient of w's shape and device; w's dtype, bfloat16 or float16 (widened inside the kernel).
                For a rule with `has_lookahead`, taken at `lookahead(w, slots)`.
            slots: exactly `slot_names`, as `init` made them.
            t: number of this update, from 1.
            lr: rate for this update instead of the rule's; decay and schedule apply to it as well.
            lr_scale: factor on the rate, after the schedule (for example for staleness).
            copy: a tensor of w's shape, dtype and device, or for a float32 `w` a bfloat16 one. It receives the point at
                which the next gradient is to be taken, rounded to nearest even. It costs no second pass over `w`.

        Raises:
            InvalidArgument: the type, shape, dtype, device or range of an argument is wrong; names it.
        """
        from adamserve.optim.engine import apply

        apply.step_(self, w, g, slots, t, lr, lr_scale, copy)

    def lookahead(self, w: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        """Return the point at which the next gradient is to be taken.

        It is w + momentum V in a new tensor for the Nesterov rules, and `w` itself (no copy) for the others.

        Raises:
            InvalidArgument: a tensor's shape, dtype or device is wrong.
        """
        from adamserve.optim.engine import apply

        return apply.lookahead(self, w, slots)

    def rate(self, t: int, lr: float | None = None) -> float:
        """Return the rate of update `t`: `lr` (default: the rule's) after decay and schedule."""
        rate = self.lr if lr is None else lr
        if self.lr_decay:
            rate /= 1.0 + (t - 1) * self.lr_decay
        return rate / math.sqrt(t) if self.lr_schedule == "inverse_sqrt" else rate

    def step_bound(self, t: int, *, lr: float | None = None) -> float | None:
        """Return the largest possible change of an element in update `t`, or None where no bound is known.

        It holds for all gradients (so with l2 too) and every eps. With weight_decay the step depends on w: None. With a
        box it holds from the second update on, or from the first if w starts in the box.
        """
        bound = None if self.weight_decay else self._bound(t)
        return None if bound is None or math.isinf(bound) else bound * self.rate(t, lr)

    def _bound(self, t: int) -> float | None:
        """`step_bound` for a rate of 1."""
        return None

    def _point(self, w: Value, s: Values, c: Values) -> Value:
        """Return the point at which gradients are taken."""
        return w + c["momentum"] * s["velocity"] if self.has_lookahead else w

    def _all_constants(self, t: int, rate: float) -> dict[str, float]:
        """Return the rule's own constants and the common ones."""
        common = {"l2": self.l2, "decay": rate * self.weight_decay}
        if self.box is not None:
            common |= dict(zip(("lo", "hi"), self.box, strict=True))
        return {**self._constants(t, rate), **common}

    def _step(self, op: Ops, x: Values, c: Values) -> dict[str, Value]:
        """Return the arrays x after an update: the common options around `_update`. Without g in x, g is zero."""
        w = x["w"]
        if self.l2:
            g = x.get("g", op.number(0.0)) + c["l2"] * self._point(w, x, c)
            delta, new = self._update(op, g, x, c)
        else:
            delta, new = self._update(op, x["g"], x, c) if "g" in x else self._coast(op, x, c)
        if self.weight_decay:
            w = w - c["decay"] * w
        w = w + delta
        if self.box is not None:
            w = op.where(w < c["lo"], c["lo"], w)
            w = op.where(w > c["hi"], c["hi"], w)
        return {"w": w, **new}

    def _step_with_copy(self, name: str, op: Ops, x: Values, c: Values) -> dict[str, Value]:
        """Do `_step`, and return the point at which the next gradient is to be taken as well, by this name."""
        new = self._step(op, x, c)
        stored = {name: flush(op, value) for name, value in new.items()} if self.has_lookahead else new
        return {**new, name: self._point(stored["w"], stored, c)}

    def _coast(self, op: Ops, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        """Do `_update` with a zero gradient. A slot on which no move of w depends may be left out: it only fades."""
        return self._update(op, op.number(0.0), s, c)


def number(default: float, *, at_least: float = 0.0, below: float = math.inf, closed: bool = False) -> float:
    """Declare an option of a rule: a number in [at_least, below), or in [at_least, below] if `closed`."""
    option: float = field(default=default, metadata={"domain": (at_least, below, closed)})
    return option


def _check_option(rule: Rule, option: Field[Any]) -> None:
    """Check a number's domain, and store it as float. Check that a truth value is one: "no" must not count as true."""
    value = getattr(rule, option.name)
    if option.type in ("float", float):
        low, high, closed = option.metadata.get("domain", (0.0, math.inf, False))
        x = _float(value)
        if not (low <= x <= high if closed else low <= x < high):
            raise InvalidArgument(
                f"must be a number in [{low:g}, {high:g}{']' if closed else ')'}, got {value!r}",
                field=option.name,
                fix=f"see {type(rule).__name__}",
            )
        object.__setattr__(rule, option.name, x)
    elif option.type in ("bool", bool) and not isinstance(value, bool):
        raise InvalidArgument(f"must be True or False, got {value!r}", field=option.name)


def _check_box(rule: Rule) -> None:
    """Check that the box is None or two finite numbers, the lower one first; store it as a tuple of floats."""
    if rule.box is None:
        return
    try:
        lo, hi = map(_float, rule.box)
    except (TypeError, ValueError):
        lo = hi = math.nan
    if not -math.inf < lo < hi < math.inf:
        raise InvalidArgument(f"must be None or (lo, hi) with lo < hi, got {rule.box!r}", field="box")
    object.__setattr__(rule, "box", (lo, hi))


def _float(x: Any) -> float:
    """x as a float, NaN if it is no number."""
    try:
        return math.nan if isinstance(x, bool | str) else float(x)
    except (TypeError, ValueError, OverflowError):
        return math.nan
