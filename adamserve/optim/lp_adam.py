"""Adam with the L^p norm of past gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from adamserve.optim.arith import Ops, Value, Values, norm_p, ratio
from adamserve.optim.base import Rule, check_number
from adamserve.optim.decay import moment_bound, one_minus_power, persistence


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class LpAdam(Rule):
    """Adam with the L^p norm of past gradients in place of the L^2 norm.

        m = beta1 m + (1 - beta1) g
        r = beta2^p r + (1 - beta2^p) |g|^p
        m^ = m / (1 - beta1^t),  r^ = r / (1 - beta2^(p t))
        w = w - rate m^ / (r^ + eps)^(1/p)          (eps_inside_sqrt; otherwise m^ / (r^^(1/p) + eps))

    Constants: beta1 and beta2 in [0, 1), p >= 1 and finite, eps >= 0. bias_correction=False takes m^ = m, r^ = r.
    p = 2 is Adam with beta2^2 in place of beta2; p -> infinity is AdaMax.

    The slots are m and u = r^(1/p), since |g|^p overflows for large p. In terms of u everything is a p-norm of two
    numbers (arith.norm_p): u = norm_p(beta2 u, (1 - beta2^p)^(1/p) |g|), and r^ + eps has the root
    norm_p(u^, eps^(1/p)). The powers are series, accurate to 1 or 2 units in the last place.

    eps is 0 by default, and 0/0 counts as 0. The slides show an eps, but inside the p-th root no single value
    serves every p: 1e-8 at p = 1000 gives a root of 0.98, far above most gradients.

    Source: Kingma & Ba 2015, section 7.1, https://arxiv.org/abs/1412.6980; slides p. 27, which prints beta2 in the
    decay of r where beta2^p is meant. torch has no such rule. Hoelder's inequality
    bounds the step (`step_bound`).
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    p: float = 3.0
    eps: float = 0.0
    eps_inside_sqrt: bool = True
    bias_correction: bool = True

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The first moment, and the p-th root of the p-th."""
        return ("m", "u")

    def _check(self) -> None:
        check_number(self, "beta1", at_least=0.0, below=1.0)
        check_number(self, "beta2", at_least=0.0, below=1.0)
        check_number(self, "p", at_least=1.0)
        check_number(self, "eps", at_least=0.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        c1, u_scale = 1.0, 1.0
        if self.bias_correction:
            c1 = one_minus_power(self.beta1, t)
            u_scale = one_minus_power(self.beta2, self.p * t) ** (-1.0 / self.p)
        eps = self.eps ** (1.0 / self.p) if self.eps_inside_sqrt else self.eps
        # Beyond 1e30 nothing changes in either format, and float32 ends at 3e38.
        p = min(self.p, 1e30)
        return {
            "b1": self.beta1, "a1": 1.0 - self.beta1, "b2": self.beta2,
            "take": one_minus_power(self.beta2, self.p) ** (1.0 / self.p),
            "step": rate / c1 if self.eps else rate / c1 / u_scale, "correct": u_scale, "eps": eps,
            "p": p, "1/p": 1.0 / p,
        }  # fmt: skip

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"m": c["b1"], "u": c["b2"]}

    def _moves(self) -> tuple[float, float]:
        return persistence(self.beta1, self.beta2)

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        m = c["b1"] * s["m"] + c["a1"] * g
        u = norm_p(op, c["b2"] * s["u"], c["take"] * op.abs(g), self.p, c["p"], c["1/p"])
        if not self.eps:
            root = u  # its bias correction is in step
        elif self.eps_inside_sqrt:
            root = norm_p(op, u * c["correct"], c["eps"], self.p, c["p"], c["1/p"])
        else:
            root = u * c["correct"] + c["eps"]
        return -(c["step"] * ratio(op, m, root)), {"m": m, "u": u}

    def _coast(self, op: Ops, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        if self.eps:
            return self._update(op, op.number(0.0), s, c)
        m, u = c["b1"] * s["m"], c["b2"] * s["u"]  # a p-norm with 0
        return -(c["step"] * ratio(op, m, u)), {"m": m, "u": u}

    def _bound(self, t: int) -> float | None:
        if self.beta2 == 0.0 and self.beta1 > 0.0:
            return None
        a, b = 1.0 - self.beta1, one_minus_power(self.beta2, self.p)
        if self.bias_correction:
            a /= one_minus_power(self.beta1, t)
            b /= one_minus_power(self.beta2, self.p * t)
        rho = self.beta1 / self.beta2 if self.beta1 else 0.0
        q = math.inf if self.p == 1.0 else self.p / (self.p - 1.0)
        return moment_bound(a, b ** (1.0 / self.p), rho, q, t)
