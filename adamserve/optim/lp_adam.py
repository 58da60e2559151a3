"""Adam with the L^p norm of past gradients, and AdaMax, its limit as p grows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from adamserve.optim.arith import Ops, Value, Values, larger, norm_p, ratio
from adamserve.optim.base import Rule, number
from adamserve.optim.decay import growth, moment_bound, one_minus_power


@dataclass(frozen=True, kw_only=True, slots=True)
class _Normed(Rule):
    """A rule that moves w by m^ / u: the first moment over a norm of past gradients, which decays by beta2."""

    slot_names = ("m", "u")

    beta1: float = number(0.9, below=1.0)
    beta2: float = number(0.999, below=1.0)
    eps: float = 0.0
    bias_correction: bool = True

    def _correction(self, t: int) -> float:
        """What m is divided by in m^."""
        return one_minus_power(self.beta1, t) if self.bias_correction else 1.0

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"m": c["b1"], "u": c["b2"]}

    def _moves(self) -> tuple[float, float]:
        return growth(self.beta1, self.beta2), self.beta1


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class LpAdam(_Normed):
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
    p: float = number(3.0, at_least=1.0)
    eps_inside_sqrt: bool = True

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        c1, u_scale = self._correction(t), 1.0
        if self.bias_correction:
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
        b = one_minus_power(self.beta2, self.p)
        if self.bias_correction:
            b /= one_minus_power(self.beta2, self.p * t)
        a, q = (
            (1.0 - self.beta1) / self._correction(t),
            math.inf if self.p == 1.0 else self.p / (self.p - 1.0),
        )
        return moment_bound(a, b ** (1.0 / self.p), growth(self.beta1, self.beta2), q, t)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AdaMax(_Normed):
    """Adam with the maximum norm of past gradients.

        m = beta1 m + (1 - beta1) g
        u = max(beta2 u, |g|)                       (max(beta2 u, |g| + eps) with eps, as torch and optax)
        w = w - rate m^ / u,   m^ = m / (1 - beta1^t)

    Constants: beta1 and beta2 in [0, 1), eps >= 0, by default 0 as on the slides, and 0/0 counts as 0.
    bias_correction=False takes m^ = m. The slots are m and u.

    Step size. The slides (p. 27) and the paper say |step| <= lr. Since u >= beta2^(t-i) |g_i|,

        |m^| / u <= (1 - beta1)/(1 - beta1^t) sum_i (beta1/beta2)^(t-i),

    reached by |g_i| = beta2^(i-t): gradients that shrink from one update to the next just as u does. So lr holds in the
    limit beta2 -> 1, and the exact supremum is 1.0091 lr at the default constants as t grows; `step_bound` returns it.

    Source: Kingma & Ba 2015, section 7.1, algorithm 2, https://arxiv.org/abs/1412.6980; slides p. 27.
    torch.optim.Adamax has eps = 1e-8 by default.
    """

    lr: float = 2e-3

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {
            "b1": self.beta1, "a1": 1.0 - self.beta1, "b2": self.beta2,
            "step": rate / self._correction(t), "eps": self.eps,
        }  # fmt: skip

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        m = c["b1"] * s["m"] + c["a1"] * g
        size = op.abs(g) + c["eps"] if self.eps else op.abs(g)
        u = larger(op, c["b2"] * s["u"], size)
        return -(c["step"] * ratio(op, m, u)), {"m": m, "u": u}

    def _bound(self, t: int) -> float | None:
        a = (1.0 - self.beta1) / self._correction(t)
        return moment_bound(a, 1.0, growth(self.beta1, self.beta2), 1.0, t)
