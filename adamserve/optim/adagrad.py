"""AdaGrad, and the denominator that RMSProp shares with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, final

from adamserve.optim.arith import Ops, Value, Values, norm2, ratio
from adamserve.optim.base import Rule, check_number


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AdaGrad(Rule):
    """Adaptive gradient.

        A = A + g^2
        w = w - rate g / sqrt(A + eps)          (eps_inside_sqrt; otherwise g / (sqrt(A) + eps))

    eps >= 0, by default 0, and 0/0 counts as 0. The slot is root = sqrt(A), updated as a scaled hypotenuse: so
    float32 gradients from 1e-37 to 1e38 give the right result, while A itself would underflow below 1e-22. In
    float32 a gradient smaller than root/4096 does not change root, just as it would not change A.

    The step is at most rate, since |g| <= root.

    Source: slides p. 7; Duchi, Hazan, Singer 2011, https://jmlr.org/papers/v12/duchi11a.html.
    torch.optim.Adagrad has eps outside the root, 1e-10 by default.
    """

    lr: float = 0.01
    eps: float = 0.0
    eps_inside_sqrt: bool = True

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The root of the accumulator."""
        return ("root",)

    def _check(self) -> None:
        check_number(self, "eps", at_least=0.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"rate": rate, "eps": damping(self)}

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {}

    def _moves(self) -> tuple[float, float]:
        return 0.0, 0.0

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        root = norm2(op, s["root"], op.abs(g))
        return -(c["rate"] * ratio(op, g, denominator(self, op, root, c))), {"root": root}

    def _coast(self, op: Ops, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        return op.number(0.0), {}

    def _bound(self, t: int) -> float | None:
        return 1.0


class Damped(Protocol):
    """A rule that divides by the root of accumulated squared gradients."""

    @property
    def eps(self) -> float: ...
    @property
    def eps_inside_sqrt(self) -> bool: ...


def damping(rule: Damped) -> float:
    """Return eps as `denominator` takes it: its root where it stands inside the root."""
    return math.sqrt(rule.eps) if rule.eps_inside_sqrt else rule.eps


def denominator(rule: Damped, op: Ops, root: Value, c: Values) -> Value:
    """Return sqrt(root^2 + eps) where eps stands inside the root, otherwise root + eps."""
    if not rule.eps:
        return root
    return norm2(op, root, c["eps"]) if rule.eps_inside_sqrt else root + c["eps"]
