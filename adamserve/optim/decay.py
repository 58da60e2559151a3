"""What rules with decaying averages share: bias corrections, and how far such averages can move a parameter."""

from __future__ import annotations

import math


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
