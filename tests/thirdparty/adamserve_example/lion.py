"""The rule Lion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from adamserve.optim import Rule
from adamserve.optim.arith import Ops, Value, Values
from adamserve.optim.base import number


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Lion(Rule):
    """Evolved sign momentum.

        w = w - rate sign(beta1 m + (1 - beta1) g)
        m = beta2 m + (1 - beta2) g

    beta1 and beta2 in [0, 1).

    Source: Chen et al. 2023, https://arxiv.org/abs/2302.06675.
    """

    slot_names = ("m",)

    lr: float = 1e-4
    beta1: float = number(0.9, below=1.0)
    beta2: float = number(0.99, below=1.0)

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {
            "rate": rate, "b1": self.beta1, "a1": 1.0 - self.beta1, "b2": self.beta2, "a2": 1.0 - self.beta2,
        }  # fmt: skip

    def _fades(self, c: Mapping[str, float]) -> dict[str, float]:
        return {"m": c["b2"]}

    def _moves(self) -> tuple[float, float]:
        return (1.0, self.beta2) if self.beta1 else (0.0, 0.0)

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        direction = c["b1"] * s["m"] + c["a1"] * g
        sign = op.where(direction > 0.0, 1.0, op.where(direction < 0.0, -1.0, 0.0))
        return -(c["rate"] * sign), {"m": c["b2"] * s["m"] + c["a2"] * g}
