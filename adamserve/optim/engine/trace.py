"""Record a rule's arithmetic as a list of single assignments, ready to be written as C.

Equal operations on equal operands are recorded once. A `Program` holds all that an executor needs: the arrays, the
constants in the order of the kernel's argument, and the function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from adamserve.optim.arith import Ops, Real, Value, Values, flush

Update = Callable[[Ops, Values, Values], Mapping[str, Value]]
"""(operations, arrays by name, constants by name) -> new contents of the arrays that change."""


@dataclass(frozen=True, slots=True)
class Node:
    """One assignment: an operation, its operands (earlier nodes), and for a leaf its name or number."""

    op: str
    args: tuple[int, ...] = ()
    leaf: str | float = ""

    @property
    def is_bool(self) -> bool:
        """Whether it yields a truth value."""
        return self.op in ("<", ">")


@dataclass(slots=True)
class Trace:
    """The list of assignments while it grows."""

    nodes: list[Node] = field(default_factory=list)
    indices: dict[Node, int] = field(default_factory=dict)

    def add(self, op: str, *args: Expr | float, leaf: str | float = "") -> Expr:
        """Record an operation, or find that it was recorded before."""
        node = Node(op, tuple(self._index(a) for a in args), leaf)
        if node not in self.indices:
            self.indices[node] = len(self.nodes)
            self.nodes.append(node)
        return Expr(self, self.indices[node])

    def _index(self, x: Expr | float) -> int:
        return x.index if isinstance(x, Expr) else self.add("number", leaf=float(x)).index


class Expr:
    """A value to be computed later; satisfies `arith.Value`."""

    __slots__ = ("index", "trace")

    def __init__(self, trace: Trace, index: int) -> None:
        self.trace = trace
        self.index = index

    def __add__(self, other: Expr | float) -> Expr:
        return self.trace.add("+", self, other)

    def __radd__(self, other: float) -> Expr:
        return self.trace.add("+", other, self)

    def __sub__(self, other: Expr | float) -> Expr:
        return self.trace.add("-", self, other)

    def __rsub__(self, other: float) -> Expr:
        return self.trace.add("-", other, self)

    def __mul__(self, other: Expr | float) -> Expr:
        return self.trace.add("*", self, other)

    def __rmul__(self, other: float) -> Expr:
        return self.trace.add("*", other, self)

    def __truediv__(self, other: Expr) -> Expr:
        if not isinstance(other, Expr) or self.trace.nodes[other.index].op in ("number", "constant"):
            raise TypeError("a rule must not divide by a number: torch on a GPU would round differently")
        return self.trace.add("/", self, other)

    def __neg__(self) -> Expr:
        return self.trace.add("neg", self)

    def __lt__(self, other: Expr | float) -> Expr:
        return self.trace.add("<", self, other)

    def __gt__(self, other: Expr | float) -> Expr:
        return self.trace.add(">", self, other)


class TraceOps:
    """The arithmetic that records; satisfies `arith.Ops`."""

    def __init__(self, real: Real, trace: Trace) -> None:
        self.real = real
        self._trace = trace

    def number(self, x: float) -> Value:
        return cast("Value", self._trace.add("number", leaf=x))

    def sqrt(self, x: Value) -> Value:
        return self._record("sqrt", x)

    def abs(self, x: Value) -> Value:
        return self._record("abs", x)

    def where(self, condition: Value, yes: Value | float, no: Value | float) -> Value:
        return self._record("where", condition, yes, no)

    def split(self, x: Value) -> tuple[Value, Value]:
        return self._record("exponent", x), self._record("mantissa", x)

    def floor2(self, x: Value) -> Value:
        return self._record("floor2", x)

    def two_over2(self, x: Value) -> Value:
        return self._record("two_over2", x)

    def pow2(self, n: Value) -> Value:
        return self._record("pow2", n)

    def _record(self, op: str, *args: Value | float) -> Value:
        return cast("Value", self._trace.add(op, *cast("tuple[Expr | float, ...]", args)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A rule's arithmetic, traced.

    Attributes:
        real: format of every array but `g`.
        arrays: names in the order of the kernel's arguments.
        constants: names in the order in which the kernel takes them.
        nodes: the assignments.
        stores: array name -> index of the node that becomes its new content.
        function: what was traced, for the executor that calls it with tensors.
    """

    real: Real
    arrays: tuple[str, ...]
    constants: tuple[str, ...]
    nodes: tuple[Node, ...]
    stores: Mapping[str, int]
    function: Update


def trace(function: Update, real: Real, arrays: tuple[str, ...], constants: tuple[str, ...]) -> Program:
    """Call `function` with recording values.

    Whatever it stores passes `flush` first, so that no array ever holds a subnormal number.
    """

    def flushed(op: Ops, values: Values, numbers: Values) -> Mapping[str, Value]:
        return {name: flush(op, x) for name, x in function(op, values, numbers).items()}

    record = Trace()
    values = {name: cast("Value", record.add("load", leaf=name)) for name in arrays}
    numbers = {name: cast("Value", record.add("constant", leaf=name)) for name in constants}
    stores = {
        name: cast("Expr", x).index for name, x in flushed(TraceOps(real, record), values, numbers).items()
    }
    return Program(
        real=real,
        arrays=arrays,
        constants=constants,
        nodes=tuple(record.nodes),
        stores=stores,
        function=flushed,
    )
