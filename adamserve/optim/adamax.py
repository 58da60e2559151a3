"""AdaMax, the limit of Adam with the L^p norm as p grows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from adamserve.optim.arith import Ops, Value, Values, larger, ratio
from adamserve.optim.base import Rule, check_number
from adamserve.optim.decay import moment_bound, one_minus_power, persistence


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class AdaMax(Rule):
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
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 0.0
    bias_correction: bool = True

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The first moment and the decaying maximum."""
        return ("m", "u")

    def _check(self) -> None:
        check_number(self, "beta1", at_least=0.0, below=1.0)
        check_number(self, "beta2", at_least=0.0, below=1.0)
        check_number(self, "eps", at_least=0.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        c1 = one_minus_power(self.beta1, t) if self.bias_correction else 1.0
        return {
            "b1": self.beta1,
            "a1": 1.0 - self.beta1,
            "b2": self.beta2,
            "step": rate / c1,
            "eps": self.eps,
        }

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"m": c["b1"], "u": c["b2"]}

    def _moves(self) -> tuple[float, float]:
        return persistence(self.beta1, self.beta2)

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        m = c["b1"] * s["m"] + c["a1"] * g
        size = op.abs(g) + c["eps"] if self.eps else op.abs(g)
        u = larger(op, c["b2"] * s["u"], size)
        return -(c["step"] * ratio(op, m, u)), {"m": m, "u": u}

    def _bound(self, t: int) -> float | None:
        if self.beta2 == 0.0 and self.beta1 > 0.0:
            return None
        a = (1.0 - self.beta1) / (one_minus_power(self.beta1, t) if self.bias_correction else 1.0)
        return moment_bound(a, 1.0, self.beta1 / self.beta2 if self.beta1 else 0.0, 1.0, t)
