"""Adam, with AMSGrad."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from adamserve.errors import InvalidArgument
from adamserve.optim.arith import Ops, Value, Values, larger, ratio
from adamserve.optim.base import Rule, number
from adamserve.optim.decay import growth, moment_bound, one_minus_power


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
    steady gradients, but other gradients exceed both. The exact supremum, over all gradients, is
    lr sqrt(sum_i a_i^2 / b_i), with a_i = (1 - beta1) beta1^(t-i) / (1 - beta1^t) the weights of m^ and b_i
    those of v^ (Cauchy-Schwarz; reached by g_i proportional to a_i / b_i): for the default betas it tends to 7.27 lr
    against the slides' 3.16 lr. `step_bound` returns it.

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
        if self.beta2 == 1.0:
            return {
                "b1": b1,
                "a1": 1.0 - b1,
                "step": rate / c1 / (math.sqrt(self.eps) if self.eps_inside_sqrt else self.eps),
            }
        return {
            "b1": b1, "a1": 1.0 - b1, "b2": self.beta2, "a2": 1.0 - self.beta2,
            "step": rate / c1, "correct": 1.0 / c2, "eps": self.eps,
        }  # fmt: skip

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
