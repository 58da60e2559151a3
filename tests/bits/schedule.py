"""A small job and its pushes: the same on every machine, for every version of the package.

The values are whole numbers from PCG64's raw stream, scaled by powers of two, so nothing rounds and no
library decides them. Nothing here imports the package: rules and modes are the JSON objects that checkpoints
hold, and whoever replays the steps brings the shards (`tests.bits.shards`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Config = Mapping[str, Any]

PUSHERS = ("a", "b", "c")
SHARDS = 2
PUSHES = 50
"""Pushes of each pusher."""

BITS = {"float64": 53, "float32": 24, "float16": 11}
"""Bits of a number, its sign included, that a format holds for certain."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A parameter tensor; `stride` spreads its rows over the shards."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Rows:
    """A gradient of some rows, unsorted; a row may be named twice."""

    indices: Array
    values: Array


@dataclass(frozen=True, slots=True)
class Pull:
    """The pusher pulls; its later pushes say that they were taken at this moment."""

    pusher: str


@dataclass(frozen=True, slots=True)
class Push:
    """The pusher sends these gradients, by tensor; a tensor left out had none."""

    pusher: str
    gradients: Mapping[str, Array | Rows]
    lr: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)


Step = Pull | Push

# Two shards cut "convolution" between two rows.
TENSORS = (
    Tensor("scalar", ()),
    Tensor("matrix", (9, 5)),
    Tensor("empty", (0, 3)),
    Tensor("double", (5, 3), "float64"),
    Tensor("convolution", (6, 3, 2, 4)),
    Tensor("table", (13, 3), stride=8),
    Tensor("vector", (11,), "float64"),
    Tensor("bias", (7,)),
)

# Two shards cut "table" between two rows.
TABLES = (Tensor("table", (29, 5), stride=18), Tensor("plain", (12, 2, 2)))

RULES: Mapping[str, Config] = {
    "SGD": {"lr": 0.05},
    "Nesterov": {"lr": 0.05},
    "AdaGrad": {"lr": 0.05},
    "RMSProp": {"lr": 0.01},
    "NesterovRMSProp": {"lr": 0.01},
    "Adam": {"lr": 0.01},
    "LpAdam": {"lr": 0.01},
    "AdaMax": {"lr": 0.01},
    "TorchSGD": {"lr": 0.05, "momentum": 0.9},
    "TorchRMSprop": {"lr": 0.01, "momentum": 0.9},
}
"""The options of each rule in the entries "async", "ssp:2", "bsp" and "rows"."""

_COMMON = {"lr_schedule": "inverse_sqrt", "weight_decay": 0.01, "l2": 0.001, "box": [-0.75, 0.75]}
OPTIONS: Mapping[str, Config] = {
    "SGD": {"lr": 0.25, "momentum": 0.5, **_COMMON},
    "Nesterov": {"lr": 0.25, "momentum": 0.5, **_COMMON},
    "AdaGrad": {"lr": 0.25, "eps": 1e-8, "eps_inside_sqrt": False, **_COMMON},
    "RMSProp": {"lr": 0.05, "decay": 0.75, "eps": 1e-8, **_COMMON},
    "NesterovRMSProp": {"lr": 0.05, "decay": 0.75, "momentum": 0.5, "eps": 1e-8, **_COMMON},
    "Adam": {"lr": 0.05, "eps_inside_sqrt": False, "amsgrad": True, "beta1_decay": 0.99, **_COMMON},
    "LpAdam": {"lr": 0.05, "p": 3.5, "eps": 1e-8, **_COMMON},
    "AdaMax": {"lr": 0.05, "eps": 1e-8, "bias_correction": False, **_COMMON},
    "TorchSGD": {"lr": 0.25, "momentum": 0.5, "nesterov": True, **_COMMON},
    "TorchRMSprop": {"lr": 0.05, "momentum": 0.5, "centered": True, **_COMMON},
}
"""The options of each rule in the entry "options": as many of them as go together."""

ASYNC: Config = {"mode": "async", "max_staleness": None, "staleness_lr": "none", "delay_compensation": 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A job and what is done to it."""

    rule: Config
    mode: Config
    tensors: Sequence[Tensor]
    steps: Sequence[Step]
    tensor_rules: Mapping[str, Config] = field(default_factory=dict)
    sparse: str = "exact"


def cases() -> Iterator[tuple[str, str, Case]]:
    """Every entry of the table of digests: the rule's name, the entry's, and the case."""
    free, bounded, rounds = (
        steps(TENSORS, seed=1),
        steps(TENSORS, seed=2, bound=2),
        bsp_steps(TENSORS, seed=3),
    )
    rows = steps(TABLES, seed=4, rows=True)
    for name in RULES:
        plain, optioned = ({"rule": name, **options[name]} for options in (RULES, OPTIONS))
        yield name, "async", Case(rule=plain, mode=ASYNC, tensors=TENSORS, steps=free)
        yield (
            name,
            "ssp:2",
            Case(rule=plain, mode={"mode": "ssp", "bound": 2}, tensors=TENSORS, steps=bounded),
        )
        yield name, "bsp", Case(rule=plain, mode={"mode": "bsp"}, tensors=TENSORS, steps=rounds)
        yield name, "rows", Case(rule=plain, mode=ASYNC, tensors=TABLES, steps=rows)
        yield name, "options", Case(rule=optioned, mode=ASYNC, tensors=TENSORS, steps=free)
    adam: Config = {"rule": "Adam", **RULES["Adam"]}
    stale = {**ASYNC, "max_staleness": 3, "staleness_lr": "inverse"}
    late = {**ASYNC, "delay_compensation": 10.3}
    bias = {"bias": {**adam, "lr": 0.02, "weight_decay": 0.01}}
    yield "Adam", "async, stale", Case(rule=adam, mode=stale, tensors=TENSORS, steps=free)
    for name in ("Adam", "NesterovRMSProp"):
        plain = {"rule": name, **RULES[name]}
        yield name, "async, compensated", Case(rule=plain, mode=late, tensors=TENSORS, steps=free)
    yield "Adam", "rows, lazy", Case(rule=adam, mode=ASYNC, tensors=TABLES, steps=rows, sparse="lazy")
    yield (
        "Adam",
        "rows, bsp",
        Case(rule=adam, mode={"mode": "bsp"}, tensors=TABLES, steps=bsp_steps(TABLES, seed=5, rows=True)),
    )
    yield (
        "Adam",
        "rules by tensor",
        Case(rule=adam, mode=ASYNC, tensors=TENSORS, steps=free, tensor_rules=bias),
    )


def initial(tensors: Sequence[Tensor], *, seed: int = 0) -> dict[str, Array]:
    """What the parameters start from, in their shapes."""
    draw = _Draw(seed)
    return {tensor.name: draw.values(tensor.shape, tensor.dtype) for tensor in tensors}


def steps(
    tensors: Sequence[Tensor],
    *,
    seed: int,
    bound: int | None = None,
    rows: bool = False,
    pushes: int = PUSHES,
) -> list[Step]:
    """Pushes of all pushers in a random order, with pulls between them, so that most gradients are stale.

    Args:
        tensors: the job's.
        seed: another seed gives other pushes.
        bound: most steps that a pusher may be ahead of the slowest when it pushes; None for no bound.
        rows: each push gives every tensor some rows, rather than dense gradients.
        pushes: of each pusher.
    """
    draw = _Draw(seed)
    done = dict.fromkeys(PUSHERS, 0)
    found: list[Step] = []
    while min(done.values()) < pushes:
        slowest = min(done.values())
        able = [p for p in PUSHERS if done[p] < pushes and (bound is None or done[p] - slowest <= bound)]
        pusher = able[draw.below(len(able))]
        done[pusher] += 1
        found.append(draw.push(pusher, tensors, rows=rows))
        if draw.below(4):
            found.append(Pull(pusher))
    return found


def until(steps: Sequence[Step], pushes: int) -> list[Step]:
    """The steps before push number `pushes` + 1."""
    ends = [i for i, step in enumerate(steps) if isinstance(step, Push)] + [len(steps)]
    return list(steps[: ends[pushes]])


def bsp_steps(tensors: Sequence[Tensor], *, seed: int, rows: bool = False) -> list[Step]:
    """Rounds: each pusher pushes once, in changing orders, and pulls."""
    draw = _Draw(seed)
    found: list[Step] = []
    for _ in range(PUSHES):
        left = list(PUSHERS)
        while left:
            found.append(draw.push(left.pop(draw.below(len(left))), tensors, rows=rows))
        found += map(Pull, PUSHERS)
    return found


def library() -> str:
    """The sha256 of what this machine's mathematical library makes of the rules' constants.

    Its last bits differ between processors (with and without fused multiply-add), and with them a rule's constants.
    """
    values = [
        value
        for base in (0.5, 0.75, 0.9, 0.99, 0.999)
        for t in range(1, 1 + len(PUSHERS) * PUSHES)
        for value in (base**t, math.exp(t * math.log(base)), math.expm1(t * math.log(base)))
    ]
    return hashlib.sha256(np.array(values, "<f8").tobytes()).hexdigest()


def digest(
    clocks: Sequence[int],
    updates: Mapping[str, Sequence[int]],
    arrays: Mapping[str, Mapping[str, Array]],
) -> str:
    """The sha256 of a job's whole state.

    Args:
        clocks: each shard's.
        updates: by tensor, the update count of each element, in the shards' order.
        arrays: slot (or "w", or "pulled": where gradients are taken) -> tensor -> values.
    """
    total = hashlib.sha256(f"clocks {list(clocks)}".encode())
    for tensor, counts in sorted(updates.items()):
        total.update(f"\n{tensor} updates {list(counts)}".encode())
    for slot, tensors in sorted(arrays.items()):
        for tensor, array in sorted(tensors.items()):
            total.update(f"\n{slot}/{tensor} {array.dtype} {array.size}\n".encode())
            total.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()


class _Draw:
    """Numbers from a stream that numpy promises to keep for ever."""

    def __init__(self, seed: int) -> None:
        self._stream = np.random.PCG64(seed)

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._stream.random_raw()) % n

    def values(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Multiples of powers of two between -1 and 1, of many sizes; one in sixteen is 0."""
        size, bits = math.prod(shape), BITS[dtype]
        raw, other = self._stream.random_raw((2, size))
        whole = (raw >> np.uint64(64 - bits)).astype(np.int64) - (1 << (bits - 1))
        whole[other % 16 == 15] = 0
        small = (other >> np.uint64(8)).astype(np.int64) % 8
        values: Array = np.ldexp(whole.astype(np.float64), 1 - bits - small)
        return values.astype(dtype).reshape(shape)

    def push(self, pusher: str, tensors: Sequence[Tensor], *, rows: bool) -> Push:
        """One in six dense gradients is left out, one in four is float16; some pushes have rates of their own."""
        gradients: dict[str, Array | Rows] = {}
        for tensor in tensors:
            chance = self.below(12)
            dtype = "float16" if chance < 3 else "float32" if chance < 5 else tensor.dtype
            if rows:
                indices = np.array([self.below(tensor.shape[0]) for _ in range(1 + self.below(4))], np.int64)
                values = self.values((len(indices), *tensor.shape[1:]), dtype)
                gradients[tensor.name] = Rows(indices, values)
            elif chance < 10:
                gradients[tensor.name] = self.values(tensor.shape, dtype)
        lr = (8 + self.below(8)) / 1024 if self.below(4) == 0 else None
        rated = tensors[self.below(len(tensors))].name
        rates = {rated: (8 + self.below(8)) / 512} if self.below(4) == 0 else {}
        return Push(pusher, gradients, lr, rates)
