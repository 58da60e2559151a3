"""What rules with decaying averages share: bias corrections, and how far such averages can move a parameter."""

from __future__ import annotations

import math


def one_minus_power(base: float, exponent: float) -> float:
    """1 - base^exponent for base in [0, 1], exact to rounding also where base^exponent is nearly 1."""
    return 1.0 if base == 0.0 else -math.expm1(exponent * math.log(base))


def moment_bound(a: float, b_root: float, rho: float, q: float, t: int) -> float:
    """Largest sum_i a_i |g_i| over (sum_i b_i |g_i|^p)^(1/p), for t gradients, 1/p + 1/q = 1.

    a_i = a beta1^(t-i) and b_i^(1/p) = b_root beta2^(t-i), rho = beta1/beta2. By Hoelder's inequality it is
    (sum_i (a_i / b_i^(1/p))^q)^(1/q) = (a/b_root) (sum_j rho^(q j))^(1/q), and is reached where the
    inequality is an equation. q = 1 belongs to the maximum, p = infinity. Infinite if it is beyond a float.
    """
    x = math.log(rho) if rho > 0.0 else -math.inf
    if x * t > 700.0 or (math.isfinite(q) and q * x * t > 700.0):
        return math.inf
    if math.isinf(q):
        return a / b_root * max(1.0, rho ** (t - 1))
    x *= q
    total = float(t) if x == 0.0 else math.expm1(x * t) / math.expm1(x)
    return float(a / b_root * total ** (1.0 / q))


def persistence(beta1: float, root_beta2: float) -> tuple[float, float]:
    """`Rule._moves` where m / root moves w, both decaying."""
    if not beta1:
        return 0.0, 0.0
    return (beta1 / root_beta2 if root_beta2 else math.inf), beta1
