"""Record a rule's arithmetic as a list of single assignments, for every executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from adamserve.optim.arith import Node, Ops, Real, Value, Values, flush


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A rule's arithmetic.

    Attributes:
        real: format of every array but `g` and `bfloat16`.
        arrays: names in the order of the kernel's arguments.
        constants: names in the order in which the kernel takes them.
        nodes: the assignments that some store needs.
        stores: array name -> index of the node that becomes its new content.
    """

    real: Real
    arrays: tuple[str, ...]
    constants: tuple[str, ...]
    nodes: tuple[Node, ...]
    stores: Mapping[str, int]


def trace(
    function: Callable[[Ops, Values, Values], Mapping[str, Value]],
    real: Real,
    arrays: tuple[str, ...],
    constants: tuple[str, ...],
) -> Program:
    """Record `function`, which makes the new contents of the arrays that change of all arrays and constants.

    Whatever it stores passes `flush` first, so that no array ever holds a subnormal number.
    """
    op = Ops(real)
    values = {name: op.record("load", leaf=name) for name in arrays}
    numbers = {name: op.record("constant", leaf=name) for name in constants}
    stores = {name: flush(op, x).index for name, x in function(op, values, numbers).items()}
    needed = set(stores.values())
    for k in reversed(range(len(op.nodes))):  # operands come before what needs them
        if k in needed:
            needed.update(op.nodes[k].args)
    place = {k: n for n, k in enumerate(sorted(needed))}
    return Program(
        real=real,
        arrays=arrays,
        constants=constants,
        nodes=tuple(replace(op.nodes[k], args=tuple(place[a] for a in op.nodes[k].args)) for k in place),
        stores={name: place[k] for name, k in stores.items()},
    )
