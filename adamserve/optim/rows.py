"""Tables whose rows get gradients now and then, with the results of dense updates.

A dense update changes every element, also those with a zero gradient: moments decay, momentum moves w on, weight decay
shrinks it. `Rows` leaves a row without a gradient alone and remembers the last update it had. Before the row is used,
`Rows` brings it up to date: it replays the missed updates while w still moves, and then, when slots only decay,
multiplies by one factor.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from adamserve.optim.base import Rule
from adamserve.optim.engine import build, emit
from adamserve.optim.engine.kernels import DTYPES, kernel, library, only_eager, program
from adamserve.optim.engine.threads import share
from adamserve.values import Array

REST = {"float32": 2.0**-33, "float64": 2.0**-62}
"""Replay ends when all moves still to come add up to less than this part of the first one missed (2^-9 of a unit in the
last place)."""

FORGOTTEN = 1e-300
"""Stands for 0 where a logarithm is kept."""

MAX_PHASES = 1 << 17
"""Most phases kept, at about 100 bytes each. At more, all rows are brought up to date and the history is cleared."""


class History:
    """What the updates since some origin do to a row without a gradient.

    A phase is a series of updates with the same constants: training at a steady rate is one phase, however long.

    Attributes:
        now: updates since the origin.
        phases: the number of phases.
        first: by phase, its first update, counted from 1 at the origin.
        constants: by phase, the kernel's constants, rounded to the parameters' dtype.
        logs: by phase, and by w and each slot, the logarithm of the factor of one update.
        sums: the same, summed over all updates before the phase.
    """

    def __init__(self, rule: Rule, dtype: str) -> None:
        self._rule = rule
        self._dtype = np.dtype(dtype)
        self._arrays = ("w", *rule.slot_names)
        self.first = np.zeros(16, np.int64)
        width = len(rule._all_constants(1, rule.lr))
        self.constants = np.zeros((16, width))
        self.logs = np.zeros((16, len(self._arrays)))
        self.sums = np.zeros((16, len(self._arrays)))
        self.clear()

    def clear(self) -> None:
        """Begin again at a new origin."""
        self.now = self.phases = 0
        # With an L2 penalty w never rests. With weight decay and a box it may rest at the wall and leave it later.
        self._replay_all = self._rule.l2 > 0.0 or (
            self._rule.weight_decay > 0.0 and self._rule.box is not None
        )
        self._steady = True
        self._rate = math.inf
        self._least = math.inf
        self._most = 0.0
        self._keep = 1.0

    def append(self, t: int, rate: float) -> Array:
        """Add the rule's update `t` at a rate; returns its constants as the kernel takes them."""
        named = self._rule._all_constants(t, rate)
        constants = np.array(list(named.values()), self._dtype).astype(np.float64)
        self._steady = self._steady and rate <= self._rate
        self._rate, self._least, self._most = rate, min(self._least, rate), max(self._most, rate)
        self.now += 1
        k = self.phases - 1
        if k >= 0 and np.array_equal(self.constants[k], constants):
            return constants
        if k + 1 == len(self.first):
            for array in ("first", "constants", "logs", "sums"):
                kept = getattr(self, array)
                setattr(self, array, np.concatenate([kept, np.zeros_like(kept)]))
        rounded = dict(zip(named, constants.tolist(), strict=True))
        fades = {"w": 1.0 - rounded["decay"], **self._rule._fades(rounded)}
        if fades["w"] < 0.0:
            self._replay_all = True  # w changes its sign at every update
        self._keep = min(self._keep, fades["w"])
        if k >= 0:
            self.sums[k + 1] = self.sums[k] + (self.now - self.first[k]) * self.logs[k]
        else:
            self.sums[0] = 0.0
        self.first[k + 1] = self.now
        self.constants[k + 1] = constants
        self.logs[k + 1] = [math.log(max(fades.get(name, 1.0), FORGOTTEN)) for name in self._arrays]
        self.phases += 1
        return constants

    def horizon(self) -> tuple[int, bool]:
        """Return how many missed updates of a row need a replay at most, and whether a row at rest stays at rest."""
        if self._replay_all:
            return self.now, False
        ratio, fade = self._rule._moves()
        if not fade or not self.phases:
            return 0, True
        ratio = ratio / self._keep if self._keep > 0.0 else math.inf
        if ratio < 1.0 and self._least > 0.0:
            rest = REST[self._dtype.name] * (1.0 - ratio)
            smallest = math.log(rest) + math.log(self._least) - math.log(self._most)
            return math.ceil(smallest / math.log(ratio)), self._steady
        # Moves may grow for a while; they end when the slot itself is below the smallest number.
        info = np.finfo(self._dtype)
        return math.ceil((math.log(info.tiny) - math.log(info.max)) / math.log(fade)), False

    def constants_at(self, t: int) -> Array:
        """Return the constants of an update."""
        return cast("Array", self.constants[self._phase(np.int64(t))])

    def sums_to(self, t: Array) -> Array:
        """Return, by update, the logarithms of the factors of all updates up to it."""
        phase = self._phase(t)
        since = (t - self.first[phase] + 1)[:, None]
        return cast("Array", self.sums[phase] + since * self.logs[phase])

    def _phase(self, t: Any) -> Any:
        return np.maximum(np.searchsorted(self.first[: self.phases], t, "right") - 1, 0)


class Rows:
    """The rows of one table under one rule. Not thread-safe.

    Args:
        rule: whose updates they get.
        arrays: "w" and each slot, of shape (rows, width) and contiguous; changed in place.
        t: updates that all rows have had.
        exact: rows without a gradient change as in a dense update. False: they stay as they are (lazily), and only
            the update count is shared.
    """

    def __init__(self, rule: Rule, arrays: Mapping[str, Tensor], t: int, *, exact: bool = True) -> None:
        self._rule = rule
        self._arrays = [arrays[name] for name in ("w", *rule.slot_names)]
        self._w = self._arrays[0]
        self._exact = exact
        self._history = History(rule, DTYPES[self._w.dtype])
        self._last: Array | None = None
        self.t = t

    def step_(self, rows: Array, g: Tensor, *, lr: float | None, lr_scale: float) -> None:
        """Make update t + 1, whose gradient is zero but for some rows.

        Args:
            rows: their numbers, int64, increasing.
            g: their gradients, of shape (len(rows), width), of w's dtype or half precision, on w's device.
            lr, lr_scale: as in `Rule.step_`.
        """
        t, now = self.t + 1, 0
        rate = self._rule.rate(t, lr) * lr_scale
        if self._exact:
            if self._history.phases >= MAX_PHASES or self._history.now >= 1 << 30:
                self.catch_up()
            if self._last is None:
                self._last = np.empty(self._w.shape[0], np.int32)
                self._last.fill(0)  # in memory now, rather than a page at a time in later pushes
            now = self._history.now  # the missed updates; this one joins them afterwards
            constants = self._history.append(t, rate)
        else:
            constants = np.array(list(self._rule._all_constants(t, rate).values()))
        self._advance(rows, constants, g, now)
        self.t = t

    def catch_up(self, rows: Array | None = None) -> None:
        """Bring rows up to date: those given (int64, increasing), or all."""
        if self._last is None:
            return
        self._advance(rows, None, None, self._history.now)
        if rows is None:
            self._last = None
            self._history.clear()

    def _advance(self, rows: Array | None, constants: Array | None, g: Tensor | None, now: int) -> None:
        """Replay what rows missed up to `now`, then make the update of these constants, if one is given."""
        history, width, size = self._history, self._w.shape[1], self._w.element_size()
        n = self._w.shape[0] if rows is None else len(rows)
        if n == 0 or width == 0:
            return
        dtype, item = (self._w.dtype, 0) if g is None else (g.dtype, g.element_size())
        able = self._w.device.type == "cpu" and not only_eager()
        function = _function(self._rule, self._w.dtype, dtype) if able else None
        if function is None:
            self._by_torch(np.arange(n) if rows is None else rows, constants, g, now)
            return
        horizon, rests = history.horizon()
        pointers = [a.data_ptr() for a in self._arrays]
        tables = (history.first, history.constants, history.logs, history.sums, constants)
        shared = (horizon, int(rests), history.phases, *map(_pointer, tables))

        def part(start: int, stop: int) -> None:
            # Without a list of rows, row i of a part is row start + i of the table.
            skip = start if rows is None else 0
            function(
                stop - start, width,
                _pointer(rows, start), _pointer(self._last, skip), now, *shared,
                g.data_ptr() + start * width * item if g is not None else None,
                *[p + skip * width * size for p in pointers],
            )  # fmt: skip

        share(n * width, lambda a, b: part(-(-a // width), -(-b // width)))

    def _by_torch(self, rows: Array, constants: Array | None, g: Tensor | None, now: int) -> None:
        """Do the same by dense updates of blocks of rows, on a GPU or where there is no compiler.

        Rows are sorted by their last update, so that those that need a replay of update t are neighbours.
        """
        history = self._history
        since = self._last[rows].astype(np.int64) if self._last is not None else np.full(len(rows), now)
        order = np.argsort(since, kind="stable")
        since = since[order]
        index = torch.from_numpy(rows[order]).to(self._w.device)
        blocks = [a.index_select(0, index) for a in self._arrays]
        zeros = torch.zeros_like(blocks[0])
        horizon, _ = history.horizon()

        def dense(g: Tensor, constants: Array, low: int, high: int) -> None:
            w, *slots = (block[low:high] for block in blocks)
            step = kernel(self._rule, "step", w.dtype, g.dtype, w.device)
            step.launch([w, g[low:high], *slots], constants.tolist())

        t = int(since[0]) + 1
        while t <= now:
            low = int(np.searchsorted(since, t - horizon, "left"))
            high = int(np.searchsorted(since, t, "left"))
            if low < high:
                dense(zeros, history.constants_at(t), low, high)
            elif high == len(since) or low == len(since):
                break
            else:
                t = max(t, int(since[low]))
            t += 1
        long = int(np.searchsorted(since, now - horizon, "left"))
        if long:
            sums = history.sums_to(np.full(1, now - 1))
            sums = sums - history.sums_to(np.minimum(since[:long] + horizon, now - 1))
            for block, factors in zip(blocks, np.exp(sums).T, strict=True):
                block[:long] *= torch.from_numpy(factors).to(block)[:, None]
            dense(zeros, history.constants_at(now), 0, long)
        if g is not None and constants is not None:
            dense(g.index_select(0, torch.from_numpy(order).to(g.device)), constants, 0, len(rows))
        for array, block in zip(self._arrays, blocks, strict=True):
            array.index_copy_(0, index, block)
        if self._last is not None:
            self._last[rows] = now if g is None else now + 1


def prepare(rule: Rule, dtype: torch.dtype) -> None:
    """Build the kernel of gradients of w's own dtype before the first push."""
    if not only_eager():
        _function(rule, dtype, dtype)


def _pointer(array: Array | None, skip: int = 0) -> int | None:
    return None if array is None else int(array.ctypes.data) + skip * int(array.itemsize)


@lru_cache(maxsize=4096)
def _function(rule: Rule, dtype: torch.dtype, gradient: torch.dtype) -> Callable[..., None] | None:
    """Return the compiled kernel, or None where there is no compiler."""
    step, coast = (program(rule, kind, DTYPES[dtype]) for kind in ("step", "coast"))
    try:
        built = library(emit.rows_source(step, coast, DTYPES[gradient]))
    except build.BuildError:
        return None
    whole, pointer = ctypes.c_longlong, ctypes.c_void_p
    pointers = [pointer] * (7 + len(rule.slot_names))
    return built.function(
        emit.ROWS_ENTRY, whole, whole, pointer, pointer, whole, whole, ctypes.c_int, whole, *pointers
    )
