"""Regret: what the losses so far cost above the best fixed parameters in hindsight, and what the theorem allows.

    R(T) = sum of L_t(W_t) - L_t(W*) over t = 1 to T,        W* = argmin over W of the sum of L_t(W)

L_t is the loss of the t-th mini-batch and W_t the parameters that it was computed at. Regret is a matter of convex
losses: where they are not, nothing here is called so. Source: Kingma & Ba 2015, section 4 and Theorem 4.1
(https://arxiv.org/abs/1412.6980); Zinkevich 2003.
"""

from adamserve.regret.account import RECENT, Account, Loss, slope
from adamserve.regret.minima import Minimum, minimize
from adamserve.regret.theorem import SNAPSHOTS_PER_DECADE, Constants, Meter, adam_bound, check_theorem, gamma

__all__ = [
    "RECENT",
    "SNAPSHOTS_PER_DECADE",
    "Account",
    "Constants",
    "Loss",
    "Meter",
    "Minimum",
    "adam_bound",
    "check_theorem",
    "gamma",
    "minimize",
    "slope",
]
