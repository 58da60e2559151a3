"""The arithmetic in which rules are written, and functions made of it.

A rule's update is one Python function over `Value`s, which record what is done to them. The record runs as C, as CUDA C
(engine/emit.py), or as torch operations (engine/eager.py).

Only operations that IEEE 754 defines to the last bit are allowed: + - * /, sqrt, abs, comparisons with a select, and
moving a float's exponent bits. There is no fused multiply-add, and no pow, exp or log of a library. So every executor
that performs them in the written order gives the same bits for an element: with another compiler, at any alignment, in
a vector's tail, on a GPU, and wherever a tensor is cut in two.

torch adds one restriction. On a GPU its division by a Python number multiplies by the reciprocal, which is not IEEE
division. So a rule never divides by a number, nor a number by a value (`Value` refuses).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True, slots=True)
class Node:
    """One assignment: an operation, its operands (earlier nodes), and for a leaf its name or number."""

    op: str
    args: tuple[int, ...] = ()
    leaf: str | float = ""


def _operator(op: str) -> Callable[[Value, Value | float], Value]:
    return lambda x, y: x.ops.record(op, x, y)


def _reflected(op: str) -> Callable[[Value, float], Value]:
    return lambda x, y: x.ops.record(op, y, x)


class Value:
    """An element of a tensor, to be computed later."""

    __slots__ = ("index", "ops")

    def __init__(self, ops: Ops, index: int) -> None:
        self.ops = ops
        self.index = index

    __add__ = _operator("+")
    __radd__ = _reflected("+")
    __sub__ = _operator("-")
    __rsub__ = _reflected("-")
    __mul__ = _operator("*")
    __rmul__ = _reflected("*")
    __lt__ = _operator("<")
    __gt__ = _operator(">")

    def __truediv__(self, other: Value) -> Value:
        if not isinstance(other, Value) or self.ops.nodes[other.index].op in ("number", "constant"):
            raise TypeError("a rule must not divide by a number: torch on a GPU would round differently")
        return self.ops.record("/", self, other)

    def __neg__(self) -> Value:
        return self.ops.record("neg", self)


Values = Mapping[str, Value]


@dataclass(frozen=True, kw_only=True, slots=True)
class Real:
    """What a floating-point format means to the functions below.

    Attributes:
        c_type: C's name of it; `c_int` is the integer of the same width.
        tiny: smallest normal number; anything smaller is stored as zero.
        fraction_bits: explicit bits of the significand.
        bias: exponent bias.
        sqrt_half: bit pattern of sqrt(1/2), where `split` cuts the significand.
        log, exp: series of `log2` (in z^2 <= 0.0295) and `exp2` (in [-1/2, 1/2]), lowest coefficient first.
        root_log, root_exp: series of `root1p` (in z^2 <= 1/9, and in [0, 1/2]).
    """

    c_type: str
    c_int: str
    tiny: float
    fraction_bits: int
    bias: int
    sqrt_half: int
    log: tuple[float, ...]
    exp: tuple[float, ...]
    root_log: tuple[float, ...]
    root_exp: tuple[float, ...]

    @property
    def one(self) -> int:
        """Bit pattern of 1.0."""
        return self.bias << self.fraction_bits

    @property
    def exponents(self) -> int:
        """Bits of the exponent."""
        return (2 * self.bias + 1) << self.fraction_bits

    @property
    def mask(self) -> int:
        """Bits of the fraction."""
        return (1 << self.fraction_bits) - 1


def _artanh(terms: int) -> tuple[float, ...]:
    """Taylor series of 2 artanh(z)/(z ln 2) in z^2."""
    return tuple(2.0 / (math.log(2.0) * (2 * k + 1)) for k in range(terms))


def _powers(terms: int) -> tuple[float, ...]:
    """Taylor series of 2^x."""
    return tuple(math.log(2.0) ** k / math.factorial(k) for k in range(terms))


# The series of float32 interpolate at Chebyshev nodes. Each is within 1.6e-8 of its function, a quarter of a unit in
# the last place. Those of float64 are Taylor series that are as accurate: there, speed matters less.
REALS: Mapping[str, Real] = {
    "float32": Real(
        c_type="float", c_int="int", tiny=2.0**-126, fraction_bits=23, bias=127, sqrt_half=0x3F3504F3,
        log=(2.88539004, 0.961798847, 0.576713622, 0.431760728),
        exp=(1, 0.693147182, 0.240226507, 0.0555032715, 0.00961805694, 0.0013400428, 0.000154614449),
        root_log=(2.88539004, 0.961791694, 0.577432871, 0.403451949, 0.406230867),
        root_exp=(0.693147182, 0.240225449, 0.0555210486, 0.00952434354, 0.0015423384),
    ),
    "float64": Real(
        c_type="double", c_int="long long", tiny=2.0**-1022, fraction_bits=52, bias=1023,
        sqrt_half=0x3FE6A09E667F3BCD,
        log=_artanh(11), exp=_powers(14), root_log=_artanh(17), root_exp=_powers(15)[1:],
    ),
}  # fmt: skip


class Ops:
    """The operations beyond Python's operators. It records all: equal ones on equal operands once."""

    def __init__(self, real: Real) -> None:
        self.real = real
        self.nodes: list[Node] = []
        self._indices: dict[Node, int] = {}

    def record(self, op: str, *args: Value | float, leaf: str | float = "") -> Value:
        """Record an operation, or find that it was recorded before.

        Those without a method here are for x positive and normal: x = mantissa 2^exponent exactly, with the mantissa in
        [sqrt(1/2), sqrt(2)); floor2, the largest power of two up to x; two_over2, which is 2 / floor2; and pow2, 2^n.
        """
        operands = tuple(a.index if isinstance(a, Value) else self.number(a).index for a in args)
        node = Node(op, operands, leaf)
        if node not in self._indices:
            self._indices[node] = len(self.nodes)
            self.nodes.append(node)
        return Value(self, self._indices[node])

    def number(self, x: float) -> Value:
        """A number as a value of every element."""
        return self.record("number", leaf=float(x))

    def sqrt(self, x: Value) -> Value:
        """The correctly rounded square root."""
        return self.record("sqrt", x)

    def abs(self, x: Value) -> Value:
        """|x|."""
        return self.record("abs", x)

    def where(self, condition: Value, yes: Value | float, no: Value | float) -> Value:
        """Select, element by element. Both sides are computed."""
        return self.record("where", condition, yes, no)


def larger(op: Ops, x: Value, y: Value | float) -> Value:
    """max(x, y); y if either is NaN."""
    return op.where(x > y, x, y)


def ratio(op: Ops, x: Value, y: Value) -> Value:
    """x / y, and 0 where y is 0: a coordinate that never saw a gradient does not move."""
    return op.where(y > 0.0, x / y, 0.0)


def flush(op: Ops, x: Value) -> Value:
    """0 in place of a subnormal number. Decaying moments end there, and CPUs are slow on them."""
    return op.where(op.abs(x) < op.real.tiny, 0.0, x)


def norm2(op: Ops, x: Value, y: Value | float, a: Value | float = 1.0, b: Value | float = 1.0) -> Value:
    """sqrt(a x^2 + b y^2) for x, y >= 0 of any size, though x^2 may not be a number of the format.

    Both are multiplied by the power of two that brings the larger one into [2, 4), which is exact (after
    J. L. Blue, "A portable Fortran program to find the Euclidean norm of a vector", ACM TOMS 4, 1978).
    """
    top = larger(op, larger(op, x, y), op.real.tiny)
    up, down = op.record("two_over2", top), op.record("floor2", top)
    xs, ys = x * up, up * y
    return 0.5 * op.sqrt(a * (xs * xs) + b * (ys * ys)) * down


def norm_p(op: Ops, x: Value, y: Value, p: float, p_value: Value, p_inverse: Value) -> Value:
    """(x^p + y^p)^(1/p) for x, y >= 0 and p >= 1, without leaving the range of the format.

    With s = max(x, y) and q = min(x, y)/s it is s (1 + q^p)^(1/p): of the two scaled terms one is 1.
    An error d in log2 q changes the result by d at most, whatever p: p multiplies it, the root divides it.
    `p_value` and `p_inverse` are p and 1/p as constants of the kernel.
    """
    if p == 1.0:
        return x + y
    if p == 2.0:
        return norm2(op, x, y)
    top = larger(op, x, y)
    q = ratio(op, op.where(x < y, x, y), top)
    whole = p == round(p) and p <= 16  # then multiplications are cheaper
    power = _whole_power(q, int(p)) if whole else exp2(op, p_value * log2(op, q))
    if p < 2.0:
        return top * exp2(op, p_inverse * log2(op, 1.0 + power))
    return top + top * root1p(op, power, p_inverse)


def root1p(op: Ops, x: Value, p_inverse: Value) -> Value:
    """(1 + x)^(1/p) - 1 for x in [0, 1] and p >= 2, exactly 0 at 0, so that a root that takes in nothing stays.

    e = log2(1 + x)/p = (2/(p ln 2)) artanh(z), z = x/(2 + x) <= 1/3 ; 2^e - 1 = e (series in e <= 1/2).
    """
    z = x / (2.0 + x)
    e = p_inverse * (z * _polynomial(z * z, op.real.root_log))
    return e * _polynomial(e, op.real.root_exp)


def _whole_power(x: Value, n: int) -> Value:
    """x^n by squaring, for n >= 2."""
    half = x if n < 4 else _whole_power(x, n // 2)
    squared = half * half
    return squared * x if n % 2 else squared


def log2(op: Ops, x: Value) -> Value:
    """log2 x for normal x > 0, to about one unit in the last place also near 1; very negative at 0.

    x = m 2^e ; log2 m = (2/ln 2) artanh(z), z = (m - 1)/(m + 1), |z| < 0.172.
    """
    e, m = op.record("exponent", x), op.record("mantissa", x)
    z = (m - 1.0) / (m + 1.0)
    return e + z * _polynomial(z * z, op.real.log)


def exp2(op: Ops, x: Value) -> Value:
    """2^x for x < 2^20, to about one unit in the last place; never below the smallest normal number."""
    x = larger(op, x, float(1 - op.real.bias))
    shift = 1.5 * 2.0**op.real.fraction_bits  # adding it rounds to a whole number, by IEEE rounding
    n = (x + shift) - shift
    return op.record("pow2", n) * _polynomial(x - n, op.real.exp)


def _polynomial(x: Value, coefficients: tuple[float, ...]) -> Value:
    """Horner's scheme, lowest coefficient first."""
    total: Value | float = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return cast("Value", total)
