"""The rules in float64 numpy, straight from the slides' equations; shares nothing with the package.

Each rule is a generator function: `oracle(rule)(gradient, w, t)` updates and returns w. State is in closures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from adamserve import optim

Array = Any
Update = Callable[[Array, Array, int], Array]


def oracle(rule: optim.Rule) -> Update:
    """The update w, g, t -> w of a rule, with its own state."""
    state: dict[str, Array] = {}
    kind: Any = rule

    def rate(t: int) -> float:
        decayed = kind.lr / (1 + kind.lr_decay * (t - 1))
        return float(decayed / math.sqrt(t) if kind.lr_schedule == "inverse_sqrt" else decayed)

    def slot(name: str, w: Array) -> Array:
        return state.setdefault(name, np.zeros_like(w))

    def over(x: Array, y: Array) -> Array:
        return np.divide(x, y, out=np.zeros_like(x), where=y != 0)

    def root(a: Array) -> Array:
        return np.sqrt(a + kind.eps) if kind.eps_inside_sqrt else np.sqrt(a) + kind.eps

    def project(w: Array, g: Array, t: int) -> Array:
        w = update(w, g, t)
        return w if kind.box is None else np.clip(w, *kind.box)

    def update(w: Array, g: Array, t: int) -> Array:
        lr = rate(t)
        if kind.l2:
            point = w + kind.momentum * slot("V", w) if kind.has_lookahead else w
            g = g + kind.l2 * point
        decayed = w - lr * kind.weight_decay * w
        if isinstance(kind, optim.SGD | optim.Nesterov):
            state["V"] = kind.momentum * slot("V", w) - lr * g
            return decayed + state["V"]
        if isinstance(kind, optim.TorchSGD):
            take = 1 - kind.dampening if kind.momentum and t > 1 else 1
            state["B"] = kind.momentum * slot("B", w) + take * g
            return decayed - lr * (g + kind.momentum * state["B"] if kind.nesterov else state["B"])
        if isinstance(kind, optim.TorchRMSprop):
            state["R"] = kind.decay * slot("R", w) + (1 - kind.decay) * g**2
            state["a"] = kind.decay * slot("a", w) + (1 - kind.decay) * g
            variance = np.maximum(state["R"] - state["a"] ** 2, 0) if kind.centered else state["R"]
            state["B"] = kind.momentum * slot("B", w) + over(g, np.sqrt(variance) + kind.eps)
            return decayed - lr * state["B"]
        if isinstance(kind, optim.AdaGrad):
            state["A"] = slot("A", w) + g**2
            return decayed - lr * over(g, root(state["A"]))
        if isinstance(kind, optim.RMSProp):
            state["R"] = kind.decay * slot("R", w) + (1 - kind.decay) * g**2
            return decayed - lr * over(g, root(state["R"]))
        if isinstance(kind, optim.NesterovRMSProp):
            state["R"] = kind.decay * slot("R", w) + (1 - kind.decay) * g**2
            state["V"] = kind.momentum * slot("V", w) - lr * over(g, root(state["R"]))
            return decayed + state["V"]
        b1 = kind.beta1 * getattr(kind, "beta1_decay", 1.0) ** (t - 1)
        state["m"] = b1 * slot("m", w) + (1 - b1) * g
        state["weights"] = b1 * state.get("weights", 0.0) + (1 - b1)
        corrected = getattr(kind, "bias_correction", True)
        m_hat = state["m"] / state["weights"] if corrected else state["m"]
        if isinstance(kind, optim.Adam):
            state["v"] = v = kind.beta2 * slot("v", w) + (1 - kind.beta2) * g**2
            if kind.amsgrad:
                state["top"] = v = np.maximum(slot("top", w), v)
            v_hat = v / (1 - kind.beta2**t) if corrected and kind.beta2 < 1 else v
            return decayed - lr * over(m_hat, root(v_hat))
        if isinstance(kind, optim.LpAdam):
            p = kind.p
            # In logarithms: |g|^p itself leaves float64 for large p.
            with np.errstate(divide="ignore"):
                fresh = math.log1p(-(kind.beta2**p)) + p * np.log(np.abs(g))
                kept = p * math.log(kind.beta2) + slot("log r", w) if t > 1 else np.full_like(w, -np.inf)
            state["log r"] = np.logaddexp(kept, fresh)
            log_hat = state["log r"] - (
                math.log(-math.expm1(p * t * math.log(kind.beta2))) if corrected else 0.0
            )
            with np.errstate(divide="ignore"):
                log_sum = np.logaddexp(log_hat, math.log(kind.eps) if kind.eps else -np.inf)
            return decayed - lr * over(m_hat, np.exp(log_sum / p))
        state["u"] = np.maximum(kind.beta2 * slot("u", w), np.abs(g) + kind.eps)
        return decayed - lr * over(m_hat, state["u"])

    return project
