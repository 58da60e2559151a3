"""Write a traced program as C (one loop) or CUDA C (one grid-stride kernel).

Both come from the same assignments and the same expressions; only loop and entry point differ. The
source is the whole specification of a kernel: programs with equal sources share one compiled file.
"""

from __future__ import annotations

import ctypes

from adamserve.optim.engine.arith import Real
from adamserve.optim.engine.trace import Node, Program

ENTRY = "adamserve_update"
ROWS_ENTRY = "adamserve_rows"

GRADIENT_TYPES = {
    "float32": "float",
    "float64": "double",
    "bfloat16": "unsigned short",
    "float16": "unsigned short",
}

# Half precision is widened by moving bits, so that no compiler needs to know the type. A float16 subnormal
# is a small whole number times 2^-24: exact, and free of float32 subnormals.
_WIDEN = {
    "bfloat16": """
FN float widen(unsigned short h) {
    union { unsigned int i; float f; } u;
    u.i = (unsigned int)h << 16;
    return u.f;
}""",
    "float16": """
FN float widen(unsigned short h) {
    union { unsigned int i; float f; } u, sub;
    unsigned int magnitude = h & 0x7fffu, sign = (unsigned int)(h & 0x8000u) << 16;
    u.i = (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
    sub.f = (float)(int)magnitude * 0x1p-24f;
    u.i = (magnitude < 0x400u ? sub.i : u.i) | sign;
    return u.f;
}""",
}

_NARROW = """
FN unsigned short narrow(float x) {
    union { unsigned int i; float f; } u;
    u.f = x;
    return x != x ? 0x7fc0u : (unsigned short)((u.i + 0x7fffu + ((u.i >> 16) & 1u)) >> 16);
}"""

_BITS = """
FN {T} pow2({T} n) {{
    union {{ {I} i; {T} f; }} u;
    u.i = (({I})n + {bias}) << {fraction};
    return u.f;
}}
FN {T} floor2({T} x) {{
    union {{ {I} i; {T} f; }} u;
    u.f = x;
    u.i &= {exponents};
    return u.f;
}}
FN {T} two_over2({T} x) {{
    union {{ {I} i; {T} f; }} u;
    u.f = x;
    u.i = {exponents} - (u.i & {exponents});
    return u.f;
}}
FN {T} exponent({T} x) {{
    union {{ {I} i; {T} f; }} u;
    u.f = x;
    return ({T})(((u.i + {offset}) >> {fraction}) - {bias});
}}
FN {T} mantissa({T} x) {{
    union {{ {I} i; {T} f; }} u;
    u.f = x;
    u.i = ((u.i + {offset}) & {mask}) + {cut};
    return u.f;
}}"""

_IVDEP = (
    "#if defined(__clang__)\n#pragma clang loop vectorize(assume_safety)\n#else\n#pragma GCC ivdep\n#endif\n"
)

# A row is looked at every 8th update for whether it moves still. `runs` are runs of updates with the same constants;
# of each are known its first update, the constants, and by array the logarithm of what an update without a gradient
# multiplies it by (`logs`) and the sum of these over all updates before the run (`sums`).
_ROWS = """
static inline long long run_of(long long runs, const long long *first, long long t) {{
    long long low = 0, high = runs;
    while (high - low > 1) {{
        const long long middle = (low + high) / 2;
        if (first[middle] <= t) low = middle; else high = middle;
    }}
    return low;
}}

static double sum_to(long long runs, const long long *first, const double *logs, const double *sums,
                     long long stride, long long t) {{
    const long long r = run_of(runs, first, t);
    return sums[r * stride] + (double)(t - first[r] + 1) * logs[r * stride];
}}

static double span(long long runs, const long long *first, const double *logs, const double *sums,
                   long long stride, long long from, long long to) {{
    return sum_to(runs, first, logs, sums, stride, to) - sum_to(runs, first, logs, sums, stride, from);
}}

static void fade(long long n, double factor, {T} *x) {{
    for (long long i = 0; i < n; i++) {{
        const {T} y = ({T})(x[i] * factor);
        x[i] = fabs(y) < {tiny} ? 0 : y;
    }}
}}

void {entry}(long long n, long long width, const long long *rows, int *last, long long now, long long horizon,
             int may_rest, long long runs, const long long *first, const double *constants, const double *logs,
             const double *sums, const double *given, const {G} *g, {arrays}) {{
    for (long long i = 0; i < n; i++) {{
        const long long row = rows ? rows[i] : i, at = row * width;
        if (rows && i + 8 < n) {{
            const long long ahead = rows[i + 8] * width;
            if (last) __builtin_prefetch(last + rows[i + 8], 1);
            {prefetch}
        }}
        if (last) {{
            const long long began = last[row];
            long long done = began;
            last[row] = (int)(given ? now + 1 : now);
            if (done < now) {{
                const long long stop = now - done > horizon ? done + horizon : now;
                long long r = run_of(runs, first, done + 1);
                int moving = 1;
                while (done < stop && moving) {{
                    done++;
                    while (r + 1 < runs && first[r + 1] <= done) r++;
                    if (may_rest && done % 8 == 0)
                        moving = coast_moving(width, constants + r * {width}, {row});
                    else
                        coast(width, constants + r * {width}, {row});
                }}
                if (done < now - 1) {{
{steps}                }}
                if (done < now) {{
                    r = run_of(runs, first, now);
                    coast(width, constants + r * {width}, {row});
                }}
                {{
{skips}                }}
            }}
        }}
        if (given) update(width, given, {given});
    }}
}}
"""


def c_source(program: Program, gradient: str) -> str:
    """The kernel in C99: `void adamserve_update(long long n, const double *constants, arrays...)`.

    Arrays may be the same array (never shifted ones), hence `ivdep` and not `restrict`.
    """
    return _head(program, gradient, "static inline") + _function(f"void {ENTRY}", program, gradient)


def rows_source(step: Program, coast: Program, gradient: str) -> str:
    """The kernel of rows that missed updates (rows.py), in C99: `void adamserve_rows(...)`.

    It replays a row's missed updates one by one; after `horizon` of them, or when the row has come to rest, it scales
    the row by what all but the last would have done and replays the last. What no move of w depends on is scaled in
    one. Then it applies the row's own gradient.

    Args:
        step, coast: an update with and without a gradient, of the same constants.
        gradient: the gradient's dtype.
    """
    real, slots = step.real, coast.arrays
    decay = f"({real.c_type})constants[{step.constants.index('decay')}]"
    moved = f"        moved |= x{coast.stores['w']} != a_w[i] - {decay} * a_w[i];\n"
    row = ", ".join(f"a_{name} + at" for name in slots)
    steps: list[str] = []
    skips: list[str] = []
    for k, name in enumerate(slots):
        ends, lines = ("done, now - 1", steps) if name in coast.stores else ("began, now", skips)
        factor = f"exp(span(runs, first, logs + {k}, sums + {k}, {len(slots)}, {ends}))"
        lines.append(f"                    fade(width, {factor}, a_{name} + at);\n")
    return (
        _head(step, gradient, "static inline")
        + _function("static void update", step, gradient)
        + _function("static void coast", coast, gradient)
        + _function("static int coast_moving", coast, gradient, before_stores=moved)
        + _ROWS.format(
            T=real.c_type, G=GRADIENT_TYPES[gradient], tiny=_literal(real.tiny, real), entry=ROWS_ENTRY,
            width=len(step.constants), steps="".join(steps), skips="".join(skips), row=row,
            prefetch=" ".join(f"__builtin_prefetch(a_{name} + ahead, 1);" for name in slots),
            given=", ".join("g + i * width" if name == "g" else f"a_{name} + at" for name in step.arrays),
            arrays=", ".join(f"{real.c_type} *a_{name}" for name in slots),
        )
    )  # fmt: skip


def _function(head: str, program: Program, gradient: str, before_stores: str = "") -> str:
    """A program as a loop over `n` elements; with statements before the stores it returns what they put in `moved`."""
    return (
        f"\n{head}(long long n, const double *constants, {_parameters(program, gradient)}) {{\n"
        + ("    int moved = 0;\n" if before_stores else "")
        + _rounded(program)
        + _IVDEP
        + "    for (long long i = 0; i < n; i++) {\n"
        + _body(program, gradient, before_stores)
        + "    }\n"
        + ("    return moved;\n" if before_stores else "")
        + "}\n"
    )


def cuda_source(program: Program, gradient: str) -> str:
    """The kernel in CUDA C: `adamserve_update(int n, double constants..., arrays...)`."""
    body, real = _body(program, gradient), program.real
    numbers = "".join(f"double k{k}, " for k in _used(program))
    constants = "".join(f"    const {real.c_type} c{k} = ({real.c_type})k{k};\n" for k in _used(program))
    return (
        _head(program, gradient, "static __device__ __forceinline__")
        + f'\nextern "C" __global__ void {ENTRY}(int n, {numbers}{_parameters(program, gradient)}) {{\n'
        + constants
        + "    const long long stride = (long long)gridDim.x * blockDim.x;\n"
        + "    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {\n"
        + body
        + "    }\n}\n"
    )


def used_constants(program: Program) -> tuple[str, ...]:
    """The constants that a CUDA kernel takes, in order: those that the arithmetic reads."""
    return tuple(program.constants[k] for k in _used(program))


def _used(program: Program) -> list[int]:
    """Which constants some live node reads."""
    live = _live(program)
    names = {n.leaf for k, n in enumerate(program.nodes) if k in live and n.op == "constant"}
    return [k for k, name in enumerate(program.constants) if name in names]


def _live(program: Program) -> set[int]:
    """The nodes that some store depends on."""
    live, todo = set(), list(program.stores.values())
    while todo:
        k = todo.pop()
        if k not in live:
            live.add(k)
            todo += program.nodes[k].args
    return live


def _head(program: Program, gradient: str, qualifier: str) -> str:
    """Helper functions that this kernel calls."""
    r = program.real
    text = f"#define FN {qualifier}\n"
    if qualifier.startswith("static inline"):
        text = "#include <math.h>\n" + text
    if "g" in program.arrays:
        text += _WIDEN.get(gradient, "")
    if "narrow" in program.stores:
        text += _NARROW
    if any(n.op in ("pow2", "exponent", "floor2") for n in program.nodes):
        suffix = "LL" if r.fraction_bits == 52 else ""
        text += _BITS.format(
            T=r.c_type, I=r.c_int, bias=r.bias, fraction=r.fraction_bits, offset=f"{r.one - r.sqrt_half}{suffix}",
            mask=f"{r.mask}{suffix}", cut=f"{r.sqrt_half}{suffix}", exponents=f"{r.exponents}{suffix}",
        )  # fmt: skip
    return text + "\n"


def _parameters(program: Program, gradient: str) -> str:
    """The arrays as parameters; those that are only read are const."""
    parts = []
    for name in program.arrays:
        c_type = {"g": GRADIENT_TYPES[gradient], "narrow": "unsigned short"}.get(name, program.real.c_type)
        const = "" if name in program.stores else "const "
        parts.append(f"{const}{c_type} *a_{name}")
    return ", ".join(parts)


def _rounded(program: Program) -> str:
    """The constants, rounded once to the format."""
    real = program.real.c_type
    return "".join(f"    const {real} c{k} = ({real})constants[{k}];\n" for k in _used(program))


def _body(program: Program, gradient: str, before_stores: str = "") -> str:
    """The loop's body: loads and assignments in order, then the stores."""
    live = _live(program)
    lines = []
    for k, node in enumerate(program.nodes):
        if k in live and node.op not in ("constant", "number"):
            c_type = "int" if node.is_bool else program.real.c_type
            lines.append(f"        const {c_type} x{k} = {_expression(program, node, gradient)};\n")
    lines.append(before_stores)
    for name, k in program.stores.items():
        value = _operand(program, k)
        lines.append(f"        a_{name}[i] = {f'narrow({value})' if name == 'narrow' else value};\n")
    return "".join(lines)


def _expression(program: Program, node: Node, gradient: str) -> str:
    """The right-hand side of one assignment."""
    real, a = program.real, [_operand(program, k) for k in node.args]
    single = real.c_type == "float"
    match node.op:
        case "load":
            element = f"a_{node.leaf}[i]"
            return f"widen({element})" if node.leaf == "g" and gradient in _WIDEN else element
        case "sqrt":
            return f"sqrt{'f' if single else ''}({a[0]})"
        case "abs":
            return f"fabs{'f' if single else ''}({a[0]})"
        case "neg":
            return f"-{a[0]}"
        case "where":
            return f"{a[0]} ? {a[1]} : {a[2]}"
        case "pow2" | "exponent" | "mantissa" | "floor2" | "two_over2":
            return f"{node.op}({a[0]})"
        case _:
            return f"{a[0]} {node.op} {a[1]}"


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


def finite_source() -> str:
    """`int finite_<dtype>(long long n, const void *x)`: 1 if no element is infinite or NaN.

    An integer test of the exponent bits, a block at a time, so that it vectorises and stops early.
    """
    text = "#include <stddef.h>\n"
    for name, c_type, mask in (
        ("float16", "unsigned short", "0x7c00u"),
        ("bfloat16", "unsigned short", "0x7f80u"),
        ("float32", "unsigned int", "0x7f800000u"),
        ("float64", "unsigned long long", "0x7ff0000000000000ull"),
    ):
        text += f"""
int finite_{name}(long long n, const {c_type} *x) {{
    for (long long start = 0; start < n; start += 4096) {{
        const long long stop = n - start < 4096 ? n : start + 4096;
        {c_type} bad = 0;
        for (long long i = start; i < stop; i++) bad |= ({c_type})((x[i] & {mask}) == {mask});
        if (bad) return 0;
    }}
    return 1;
}}
"""
    return text
