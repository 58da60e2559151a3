"""Write a traced program as C (one loop) or CUDA C (one grid-stride kernel).

The C files beside this module hold what no program changes; `$name` marks where a generated part goes. Both languages
get the same assignments and expressions: only the loop and the entry point differ. A source specifies its kernel
completely, so programs with equal sources share one compiled file.
"""

from __future__ import annotations

import ctypes
from string import Template

from adamserve.optim.arith import Node, Real
from adamserve.optim.engine.build import text
from adamserve.optim.engine.trace import Program

ENTRY = "adamserve_update"
ROWS_ENTRY = "adamserve_rows"

HALVES = ("bfloat16", "float16")
GRADIENT_TYPES = {"float32": "float", "float64": "double"} | dict.fromkeys(HALVES, "unsigned short")

_EXPRESSIONS = {
    "sqrt": "sqrt{suffix}({0})",
    "abs": "fabs{suffix}({0})",
    "neg": "-{0}",
    "where": "{0} ? {1} : {2}",
    **dict.fromkeys("+-*/<>", "{0} {op} {1}"),
}
"""Operations as C writes them; the others are functions of numbers.h."""


def c_source(program: Program, gradient: str) -> str:
    """Return the kernel in C99: `void adamserve_update(long long n, const double *constants, arrays...)`.

    Two arguments may be the same array (never a shifted one), so the loop says `ivdep` and the arrays not `restrict`.
    """
    return _head(program.real) + _loop(f"void {ENTRY}", program, gradient)


def rows_source(step: Program, coast: Program, gradient: str) -> str:
    """Return the kernel of rows that missed updates, in C99: `void adamserve_rows(...)`. See rows.c for what it does.

    `step` is an update with a gradient of that dtype, `coast` one without, of the same constants.
    """
    slots = coast.arrays
    decay = f"(real)constants[{step.constants.index('decay')}]"
    moved = f"        moved |= x{coast.stores['w']} != a_w[i] - {decay} * a_w[i];\n"
    steps: list[str] = []
    skips: list[str] = []
    for k, name in enumerate(slots):
        ends, lines = ("done, now - 1", steps) if name in coast.stores else ("began, now", skips)
        factor = f"exp(span(phases, first, logs + {k}, sums + {k}, {len(slots)}, {ends}))"
        lines.append(f"                    fade(width, {factor}, a_{name} + at);\n")
    return (
        _head(step.real)
        + _loop("static void update", step, gradient)
        + _loop("static void coast", coast, gradient)
        + _loop("static int coast_moving", coast, gradient, before_stores=moved)
        + _fill(
            "rows.c",
            name=ROWS_ENTRY,
            gradient=GRADIENT_TYPES[gradient],
            arrays=", ".join(f"real *a_{name}" for name in slots),
            constants=str(len(step.constants)),
            row=", ".join(f"a_{name} + at" for name in slots),
            given=", ".join("g + i * width" if name == "g" else f"a_{name} + at" for name in step.arrays),
            prefetch=" ".join(f"__builtin_prefetch(a_{name} + ahead, 1);" for name in slots),
            steps="".join(steps),
            skips="".join(skips),
        )
    )


def cuda_source(program: Program, gradient: str) -> str:
    """Return the kernel in CUDA C: `adamserve_update(int n, double constants..., arrays...)`."""
    used = used_constants(program)
    return _head(program.real) + _fill(
        "update.cu",
        name=ENTRY,
        numbers="".join(f"double k{k}, " for k in used),
        arrays=_parameters(program, gradient),
        constants="".join(f"    const real c{k} = (real)k{k};\n" for k in used),
        body=_body(program, gradient),
    )


def used_constants(program: Program) -> list[int]:
    """Return which of a program's constants its arithmetic reads. A CUDA kernel takes these, in their order."""
    return [k for k, name in enumerate(program.constants) if Node("constant", leaf=name) in program.nodes]


def _fill(file: str, **parts: str) -> str:
    return "\n" + Template(text("adamserve.optim.engine", file)).substitute(parts)


def _head(r: Real) -> str:
    """Define the arrays' format, and the functions that kernels call."""
    return (
        f"typedef {r.c_type} real;\ntypedef {r.c_int} whole;\n"
        f"static const real TINY = {_literal(r.tiny, r)};\n"
        f"static const whole BIAS = {r.bias}, FRACTION = {r.fraction_bits}, EXPONENTS = {r.exponents};\n"
        f"static const whole MASK = {r.mask}, CUT = {r.sqrt_half}, OFFSET = {r.one - r.sqrt_half};\n"
    ) + text("adamserve.optim.engine", "numbers.h")


def _loop(head: str, program: Program, gradient: str, before_stores: str = "") -> str:
    """Write a program as a function over `n` elements, which returns `moved` where there are statements that set it."""
    numbers = "".join(f"    const real c{k} = (real)constants[{k}];\n" for k in used_constants(program))
    return _fill(
        "loop.c",
        head=head,
        arrays=_parameters(program, gradient),
        constants=("    int moved = 0;\n" if before_stores else "") + numbers,
        body=_body(program, gradient, before_stores),
        end="    return moved;\n" if before_stores else "",
    )


def _parameters(program: Program, gradient: str) -> str:
    """The arrays as parameters; those that are only read are const."""
    parts = []
    for name in program.arrays:
        c_type = {"g": GRADIENT_TYPES[gradient], "bfloat16": "unsigned short"}.get(name, "real")
        const = "" if name in program.stores else "const "
        parts.append(f"{const}{c_type} *a_{name}")
    return ", ".join(parts)


def _body(program: Program, gradient: str, before_stores: str = "") -> str:
    """The loop's body: loads and assignments in order, then the stores."""
    lines = []
    for k, node in enumerate(program.nodes):
        if node.op not in ("constant", "number"):
            c_type = "int" if node.op in ("<", ">") else "real"
            lines.append(f"        const {c_type} x{k} = {_expression(program, node, gradient)};\n")
    lines.append(before_stores)
    for name, k in program.stores.items():
        value = _operand(program, k)
        lines.append(f"        a_{name}[i] = {f'to_bfloat16({value})' if name == 'bfloat16' else value};\n")
    return "".join(lines)


def _expression(program: Program, node: Node, gradient: str) -> str:
    """The right-hand side of one assignment."""
    if node.op == "load":
        element = f"a_{node.leaf}[i]"
        return f"widen_{gradient}({element})" if node.leaf == "g" and gradient in HALVES else element
    operands = [_operand(program, k) for k in node.args]
    suffix = "f" if program.real.c_type == "float" else ""
    return _EXPRESSIONS.get(node.op, "{op}({0})").format(*operands, op=node.op, suffix=suffix)


def _operand(program: Program, k: int) -> str:
    """A node's name in the source, or its number."""
    node = program.nodes[k]
    if node.op == "constant":
        return f"c{program.constants.index(str(node.leaf))}"
    if node.op == "number":
        return _literal(float(node.leaf), program.real)
    return f"x{k}"


def _literal(x: float, real: Real) -> str:
    """A number as a hexadecimal literal, rounded once to the format, as torch rounds a Python number."""
    return f"{ctypes.c_float(x).value.hex()}f" if real.c_type == "float" else x.hex()
