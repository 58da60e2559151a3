"""Adam, with AMSGrad; Adam with the L^p norm of past gradients; and AdaMax, its limit as p grows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from adamserve.errors import InvalidArgument
from adamserve.optim.arith import Ops, Value, Values, larger, norm_p, ratio
from adamserve.optim.base import Rule, number


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Adam(Rule):
    """Adaptive moment estimation.

        m = b1 m + (1 - b1) g                       b1 = beta1 beta1_decay^(t-1)
        v = beta2 v + (1 - beta2) g^2
        m^ = m / (1 - b1_1 b1_2 ... b1_t),  v^ = v / (1 - beta2^t)
        w = w - rate m^ / sqrt(v^ + eps)            (eps_inside_sqrt; otherwise m^ / (sqrt(v^) + eps))

    Constants: beta1 in [0, 1), beta2 in [0, 1], eps >= 0, beta1_decay in (0, 1]. beta1_decay is the lambda of the
    regret theorem: the product above is beta1^t lambda^(t(t-1)/2), so that a constant gradient has m^ = g at every t.
    bias_correction=False takes m^ = m, v^ = v. amsgrad keeps the maximum of v and corrects that, in torch's order
    (Reddi et al. 2018, https://openreview.net/forum?id=ryQu7f-RZ, without a correction). The slots are m and v, with
    amsgrad also the maximum of v.

    beta2 = 1 needs eps > 0: v stays 0, v^ counts as 0, and the rule is SGD with momentum
    beta1 (1 - beta1^(t-1)) / (1 - beta1^t) and rate lr (1 - beta1) / ((1 - beta1^t) sqrt(eps)) (slides p. 17).

    Step size. The slides (p. 12) and the paper (section 2.1) bound the step for eps = 0 by
    lr (1 - beta1) / sqrt(1 - beta2) if that exceeds lr, else by lr. These hold for one gradient after zeros and for
    steady gradients, but other gradients exceed both. Over all gradients the supremum is that of `moment_bound`, with
    p = 2: for the default betas it tends to 7.27 lr against the slides' 3.16 lr. `step_bound` returns it.

    In float32, g^2 underflows below |g| = 1e-19 and overflows above 1e19, as in every implementation that keeps v.
    With the default eps = 1e-8 inside the root, the underflow does not matter.

    Source: Kingma & Ba 2015, algorithm 1, https://arxiv.org/abs/1412.6980; slides p. 11. torch.optim.Adam has eps
    outside the root.
    """

    lr: float = 1e-3
    beta1: float = number(0.9, below=1.0)
    beta2: float = number(0.999, below=1.0, closed=True)
    eps: float = 1e-8
    eps_inside_sqrt: bool = True
    bias_correction: bool = True
    beta1_decay: float = number(1.0, at_least=5e-324, below=1.0, closed=True)
    amsgrad: bool = False

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Both moments; with amsgrad also the maximum of the second."""
        return ("m", "v", "v_max") if self.amsgrad else ("m", "v")

    def _check(self) -> None:
        if self.beta2 == 1.0 and self.eps == 0.0:
            raise InvalidArgument(
                "must be above 0 when beta2 is 1, for v stays 0", field="eps", fix="e.g. eps=1e-8"
            )

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        b1 = self.beta1 * self.beta1_decay ** (t - 1)
        c1, c2 = self._corrections(t)
        first = {"b1": b1, "a1": 1.0 - b1}
        if self.beta2 == 1.0:
            return first | {"step": rate / c1 / (math.sqrt(self.eps) if self.eps_inside_sqrt else self.eps)}
        second = {"b2": self.beta2, "a2": 1.0 - self.beta2}
        return first | second | {"step": rate / c1, "correct": 1.0 / c2, "eps": self.eps}

    def _corrections(self, t: int) -> tuple[float, float]:
        """What m and v are divided by in m^ and v^."""
        if not self.bias_correction:
            return 1.0, 1.0
        log_product = t * math.log(self.beta1) if self.beta1 else -math.inf
        log_product += 0.5 * t * (t - 1) * math.log(self.beta1_decay)
        return -math.expm1(log_product), one_minus_power(self.beta2, t)

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"m": c["b1"]} if self.beta2 == 1.0 else {"m": c["b1"], "v": c["b2"]}

    def _moves(self) -> tuple[float, float]:
        return growth(self.beta1, 1.0 if self.amsgrad else math.sqrt(self.beta2)), self.beta1

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        m = c["b1"] * s["m"] + c["a1"] * g
        if self.beta2 == 1.0:
            return -(c["step"] * m), {"m": m}
        v = c["b2"] * s["v"] + c["a2"] * (g * g)
        new = {"m": m, "v": v}
        if self.amsgrad:
            new["v_max"] = v = larger(op, s["v_max"], v)
        v_hat = v * c["correct"] if self.bias_correction else v
        if not self.eps:
            root = op.sqrt(v_hat)
        elif self.eps_inside_sqrt:
            root = op.sqrt(v_hat + c["eps"])
        else:
            root = op.sqrt(v_hat) + c["eps"]
        return -(c["step"] * ratio(op, m, root)), new

    def _bound(self, t: int) -> float | None:
        if self.beta2 == 1.0:
            return None
        c1, c2 = self._corrections(t)
        b = (1.0 - self.beta2) / c2
        if self.beta1_decay < 1.0:
            return self._decayed_bound(t, c1, b)
        rho = growth(self.beta1, math.sqrt(self.beta2))
        return moment_bound((1.0 - self.beta1) / c1, math.sqrt(b), rho, 2.0, t)

    def _decayed_bound(self, t: int, c1: float, b: float) -> float | None:
        """The same supremum when beta1 decays: the sum itself, newest gradient first, until the rest is negligible."""
        total, product, weight = 0.0, 1.0, b
        for i in range(t, 0, -1):
            b1 = self.beta1 * self.beta1_decay ** (i - 1)
            term = ((1.0 - b1) * product) ** 2 / weight
            total += term
            product *= b1
            weight *= self.beta2
            if product == 0.0 or (term < 1e-17 * total and self.beta1**2 < 0.99 * self.beta2):
                break
            if weight == 0.0:
                return None
        return math.sqrt(total) / c1


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
    decay of r where beta2^p is meant. torch has no such rule. Hoelder's inequality bounds the step (`step_bound`).
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
        a = (1.0 - self.beta1) / self._correction(t)
        q = math.inf if self.p == 1.0 else self.p / (self.p - 1.0)
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

    Step size. The slides (p. 27) and the paper say |step| <= lr, which holds in the limit beta2 -> 1. Gradients that
    shrink from one update to the next just as u does move w farther: at the default constants the supremum is 1.0091 lr
    as t grows. `step_bound` returns it.

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


def one_minus_power(base: float, exponent: float) -> float:
    """Return 1 - base^exponent for base in [0, 1], accurate also where base^exponent is nearly 1."""
    return 1.0 if base == 0.0 else -math.expm1(exponent * math.log(base))


def growth(beta1: float, root_beta2: float) -> float:
    """Return beta1 / root_beta2, and 0 for 0/0: by how much m / root can grow without a gradient."""
    if not beta1:
        return 0.0
    return beta1 / root_beta2 if root_beta2 else math.inf


def moment_bound(a: float, b_root: float, rho: float, q: float, t: int) -> float:
    """Return the largest value of sum_i a_i |g_i| / (sum_i b_i |g_i|^p)^(1/p) over all t gradients.

    Here a_i = a beta1^(t-i), b_i^(1/p) = b_root root_beta2^(t-i), rho = `growth` and 1/p + 1/q = 1. By Hoelder's
    inequality it is (sum_i (a_i / b_i^(1/p))^q)^(1/q) = (a/b_root) (sum_j rho^(q j))^(1/q), which gradients reach for
    which the inequality is an equation. q = 1 stands for p = infinity, the maximum. Infinite if no float is as large.
    """
    x = math.log(rho) if rho > 0.0 else -math.inf
    if x * t > 700.0 or (math.isfinite(q) and q * x * t > 700.0):
        return math.inf
    if math.isinf(q):
        return a / b_root * max(1.0, rho ** (t - 1))
    x *= q
    total = float(t) if x == 0.0 else math.expm1(x * t) / math.expm1(x)
    return float(a / b_root * total ** (1.0 / q))
