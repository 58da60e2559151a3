"""The best parameters in hindsight: the minimum of a convex loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamserve.errors import InvalidArgument
from adamserve.values import Array


@dataclass(frozen=True, slots=True)
class Minimum:
    """Where a convex function is least: the point, its value, and the gradient's Euclidean norm there."""

    w: Array
    value: float
    gradient_norm: float


def minimize(
    objective: Callable[[Array], tuple[float, Array]], start: Array, *, gradient_norm: float = 1e-8
) -> Minimum:
    """Minimise a smooth convex function by L-BFGS (scipy).

    BLAS gets one thread. On two cores a second one made this three times slower, and beside other work a hundred times.

    Args:
        objective: value and gradient at a point, in float64.
        start: where to begin, of shape (elements,).
        gradient_norm: Euclidean norm at which a point counts as the minimum.

    Raises:
        InvalidArgument: the norm was not reached.
    """
    from scipy.optimize import minimize as scipy_minimize
    from threadpoolctl import threadpool_limits

    point, evaluations = np.asarray(start, np.float64), 0
    options = {
        "gtol": gradient_norm / math.sqrt(point.size),
        "ftol": 0.0,
        "maxcor": 30,
        "maxiter": 20_000,
        "maxfun": 20_000,
    }
    for _ in range(5):  # again from where a line search gave up: L-BFGS then forgets its curvature
        # What has no minimum runs away.
        with threadpool_limits(limits=1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
            found: Any = scipy_minimize(objective, point, jac=True, method="L-BFGS-B", options=options)
            point, evaluations = found.x, evaluations + int(found.nfev)
            norm = float(np.linalg.norm(found.jac))
        if norm <= gradient_norm:
            return Minimum(point, float(found.fun), norm)
    raise InvalidArgument(
        f"{gradient_norm:g} was not reached in {evaluations} evaluations, but {norm:g}",
        field="gradient_norm",
        fix="is the function convex and bounded from below? then allow a larger norm",
    )
