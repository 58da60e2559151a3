"""Imports go up the table below only, and each module brings in only the packages that its row names.

Every import counts, wherever it stands. One inside a function, under `if TYPE_CHECKING`, or made by
`importlib.import_module("name")` is *lazy*: it costs nothing when the module is loaded, but whoever reads
the module has to know the name all the same. So a lazy import keeps to the order of the layers like any
other, and its package has to be in the row; a row's `lazily` packages, and the layers from its `eager_below`
on, may be imported in no other way.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("adamserve", "workers")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one module, or one package with all that is in it, may import."""

    packages: frozenset[str] = frozenset()
    """Third-party packages, anywhere in the module."""
    lazily: frozenset[str] = frozenset()
    """Third-party packages, lazily only."""
    siblings: frozenset[str] = frozenset()
    """Rows of the same layer."""
    eager_below: str = ""
    """From the layer that holds this row on, first-party imports must be lazy."""


def row(packages: str = "", *, lazily: str = "", siblings: str = "", eager_below: str = "") -> Row:
    words = (frozenset(text.split()) for text in (packages, lazily, siblings))
    return Row(**dict(zip(("packages", "lazily", "siblings"), words, strict=True)), eager_below=eager_below)


CLUSTER = "adamserve.cluster " + " ".join(
    f"adamserve.cluster.{name}" for name in ("actors", "ray_runtime", "service")
)

LAYERS: tuple[dict[str, Row], ...] = (
    {
        "adamserve.errors": row(),
        "adamserve.values": row("numpy", siblings="adamserve.errors"),
        "adamserve.job": row("numpy", siblings="adamserve.errors adamserve.values"),
    },
    {
        # A rule is a plain value; torch comes in with the modules that run it, and those are imported lazily.
        "adamserve.optim": row(lazily="numpy torch", siblings="adamserve.optim.engine"),
        "adamserve.optim.engine": row("numpy torch", siblings="adamserve.optim"),
        "adamserve.optim.rows": row("numpy torch", siblings="adamserve.optim adamserve.optim.engine"),
    },
    {"adamserve.regret": row("numpy", lazily="scipy threadpoolctl")},
    {
        # What a client needs of a shard, without torch.
        "adamserve.shard": row(),
        "adamserve.shard.durations": row(),
        "adamserve.shard.checks": row("numpy"),
        "adamserve.shard.ledger": row(),
        "adamserve.shard.events": row(),
        "adamserve.shard.statistics": row(siblings="adamserve.shard.durations adamserve.shard.events"),
        "adamserve.shard.consistency": row("numpy"),
        "adamserve.shard.geometry": row("numpy"),
        "adamserve.shard.sparse": row("numpy", siblings="adamserve.shard.geometry adamserve.shard.checks"),
    },
    {
        "adamserve.shard.gradients": row("numpy torch"),
        "adamserve.shard.sampling": row("torch", siblings="adamserve.shard.gradients"),
    },
    {"adamserve.shard.store": row("numpy torch")},
    {"adamserve.shard.shard": row()},
    {"adamserve.shard.host": row("numpy")},
    {"adamserve.checkpoint": row("numpy safetensors torch")},
    {
        "adamserve.observe": row(lazily="jinja2 matplotlib", siblings="adamserve.observe.exporter"),
        "adamserve.observe.terminal": row("rich", siblings="adamserve.observe"),
        "adamserve.observe.exporter": row("prometheus_client", siblings="adamserve.observe"),
        "adamserve.observe.monitor": row(
            "prometheus_client", siblings="adamserve.observe adamserve.observe.exporter"
        ),
    },
    {"adamserve.v1": row("google grpc")},
    {"adamserve.wire": row("google grpc numpy")},
    {
        "adamserve.client": row("google grpc numpy"),
        # The optimizer for torch's users; the client itself does without torch.
        "adamserve.client.early": row("torch", siblings="adamserve.client"),
        "adamserve.client.parameters": row("torch", siblings="adamserve.client"),
        "adamserve.client.moments": row(siblings="adamserve.client.parameters"),
        "adamserve.client.replicas": row("torch", siblings="adamserve.client adamserve.client.parameters"),
        "adamserve.client.remote_optimizer": row(
            "torch",
            siblings="adamserve.client adamserve.client.early adamserve.client.moments adamserve.client.parameters"
            " adamserve.client.replicas",
        ),
    },
    {"adamserve.edge": row("google grpc grpc_health grpc_reflection ml_dtypes numpy")},
    {
        "adamserve.cluster": row("numpy", lazily="packaging torch"),
        # Ray's shells; what they are around knows nothing of it.
        "adamserve.cluster.actors": row("ray", siblings=CLUSTER),
        "adamserve.cluster.ray_runtime": row("ray", siblings=CLUSTER),
        "adamserve.cluster.service": row("ray", siblings=CLUSTER),
        "adamserve.cluster.serving": row(siblings=CLUSTER),
        "adamserve.cluster.submit": row("ray", siblings="adamserve.cluster"),
    },
    {"adamserve.testing": row()},
    {
        # The face: what it shows of the upper layers is loaded on first use.
        "adamserve": row(eager_below="adamserve.shard.gradients"),
    },
    {
        # What is trained comes to these from outside: they know no network and no data set.
        "adamserve.train": row("numpy prometheus_client torch", lazily="matplotlib"),
    },
    {
        "workers": row(),
        "workers.data": row("numpy torch", lazily="PIL sklearn"),
        "workers.networks": row("torch", siblings="workers.data"),
    },
    {"workers.hindsight": row("numpy")},
    {"workers.task": row("numpy torch")},
    {
        "workers.experiments": row("numpy ray torch", lazily="jinja2 matplotlib"),
    },
    {
        "adamserve.cli": row(
            "typer",
            lazily="numpy packaging prometheus_client ray rich torch",
            eager_below="adamserve.shard.gradients",
        ),
    },
    {
        "adamserve.__main__": row(),
    },
)

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
ROWS = {name: found for layer in LAYERS for name, found in layer.items()}


@dataclass(frozen=True)
class Import:
    """One imported module, and the names taken from it."""

    line: int
    module: str
    name: str
    lazy: bool


def imports(source: str, *, package: str) -> Iterator[Import]:
    """Find every import in a module's source, relative ones resolved against its package."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                yield from (Import(node.lineno, alias.name, "", lazy) for alias in node.names)
            case ast.ImportFrom():
                base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                yield from (Import(node.lineno, module, alias.name, lazy) for alias in node.names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(node.lineno, name, "", True)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            exempt = typing_only and isinstance(node, ast.If) and child in node.body
            yield from visit(child, lazy or inside or exempt)

    yield from visit(ast.parse(source), False)


def row_of(module: str) -> str | None:
    """Name the row that a first-party module falls under; the two packages stand for themselves alone."""
    if module in ROWS:
        return module
    parent = module.rpartition(".")[0]
    return row_of(parent) if parent and parent not in PACKAGES else None


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Say what in this module's imports breaks the table."""
    here = row_of(module)
    if here is None:
        return [f"{module} is in no layer: put it in the table of test_layers.py and in ARCHITECTURE.md"]
    package = module if is_package else module.rpartition(".")[0]
    problems = []
    for found in imports(source, package=package):
        problem = _problem(here, found)
        if problem:
            problems.append(f"{module}:{found.line}: {problem}")
    return problems


def _problem(here: str, found: Import) -> str:
    top = found.module.partition(".")[0]
    allowed = ROWS[here]
    if top in sys.stdlib_module_names:
        return ""
    if top not in PACKAGES:
        if top in allowed.packages or (top in allowed.lazily and found.lazy):
            return ""
        if top in allowed.lazily:
            return f"{top} must be imported lazily in {here}"
        return f"{here} may not import {top}"
    if found.module in PACKAGES:
        if found.name == "__version__":
            return ""
        there = row_of(f"{found.module}.{found.name}") or found.module
    else:
        there = row_of(f"{found.module}.{found.name}") or ""
        if not there:
            return f"{found.module} is in no layer: put it in the table"
    if there == here:
        return ""
    if here.startswith("adamserve.") and there.startswith("workers"):
        how = "is reached by entry points only" if here == "adamserve.cli" else "is in a layer above it"
        return f"{here} may not import {there}, which {how}"
    if RANK[there] == RANK[here] and there not in allowed.siblings:
        return f"{here} may not import its sibling {there}"
    if RANK[there] > RANK[here]:
        return f"{here} may not import {there}, which is in a layer above it"
    if allowed.eager_below and not found.lazy and RANK[there] >= RANK[allowed.eager_below]:
        return f"{there} must be imported lazily in {here}"
    return ""


def sources() -> Iterable[Path]:
    return sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", sources(), ids=str)
def test_imports_go_up_the_layers_only(path: Path) -> None:
    if path.stem.endswith(("_pb2", "_pb2_grpc")):
        pytest.skip("generated")
    source = (ROOT / path).read_text(encoding="utf-8")
    problems = violations(source, module_name(path), is_package=path.name == "__init__.py")
    assert not problems, "\n".join(problems)


def test_every_row_is_a_module() -> None:
    exist = {module_name(path) for path in sources()}
    assert sorted(ROWS.keys() - exist) == []


PLANTED = {
    "a layer above": (
        "adamserve.shard.geometry",
        "from adamserve.shard.shard import Shard",
        "adamserve.shard.shard, which is in",
    ),
    "a layer above, in a function": (
        "adamserve.shard.shard",
        "def f():\n    import adamserve.cluster.service",
        "layer above",
    ),
    "a layer above, for its types": (
        "adamserve.shard.shard",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from adamserve import checkpoint",
        "adamserve.shard.shard:3: adamserve.shard.shard may not import adamserve.checkpoint",
    ),
    "a layer above, relative": ("adamserve.optim.base", "from .. import shard", "adamserve.shard"),
    "a layer above, by its name": (
        "adamserve.shard.shard",
        "import importlib as i\ni.import_module('adamserve.cli')",
        "cli",
    ),
    "a sibling": (
        "adamserve.shard.geometry",
        "from adamserve.shard import consistency",
        "its sibling adamserve.shard.consistency",
    ),
    "training from the service": (
        "adamserve.cluster.actors",
        "def f():\n    from adamserve.train.loop import run",
        "may not import adamserve.train, which is in",
    ),
    "training from the cli, at once": (
        "adamserve.cli.train",
        "import adamserve.train.run",
        "must be imported lazily",
    ),
    "the paper from training": (
        "adamserve.train.loop",
        "def f():\n    from workers.networks import Logistic",
        "workers.networks, which is in a layer above",
    ),
    "the paper from the cli": (
        "adamserve.cli.reproduce",
        "def f():\n    from workers.experiments import run",
        "by entry points only",
    ),
    "the cli from workers": ("workers.task", "from adamserve.cli import main", "layer above"),
    "the face from below": (
        "adamserve.shard.shard",
        "from adamserve import connect",
        "may not import adamserve,",
    ),
    "torch in values": (
        "adamserve.values",
        "def f():\n    import torch",
        "adamserve.values may not import torch",
    ),
    "torch in a rule, at once": ("adamserve.optim.adam", "import torch.nn", "must be imported lazily"),
    "ray in the shard": ("adamserve.shard.shard", "from ray import get", "may not import ray"),
    "ray in a task": ("workers.task", "async def f():\n    import ray", "may not import ray"),
    "grpc in the service": ("adamserve.shard.host", "import grpc", "may not import grpc"),
    "prometheus in the shard": (
        "adamserve.shard.shard",
        "import prometheus_client",
        "may not import prometheus_client",
    ),
    "a package that nobody named": (
        "adamserve.wire.codec",
        "try:\n    import msgpack\nexcept ImportError: ...",
        "msgpack",
    ),
    "an unknown module": ("adamserve.newcomer", "", "adamserve.newcomer is in no layer: put it in the table"),
    "an import of an unknown one": ("adamserve.cli", "from adamserve.newcomer import x", "in no layer"),
    "the other branch": (
        "adamserve.optim.base",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import torch",
        "must be imported lazily",
    ),
}


@pytest.mark.parametrize(("module", "source", "says"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_found(module: str, source: str, says: str) -> None:
    assert [says in problem for problem in violations(source, module)] == [True]


ALLOWED = {
    "the standard library": ("adamserve.errors", "import json, os.path\nfrom collections import abc"),
    "a lower layer": (
        "adamserve.shard.shard",
        "from adamserve import optim\nfrom adamserve.errors import NotFound",
    ),
    "within a package": (
        "adamserve.cluster.service",
        "from .controller import Topology\nfrom . import actors",
    ),
    "a named sibling": ("adamserve.checkpoint.export", "from adamserve import checkpoint"),
    "torch for its types": (
        "adamserve.optim.base",
        "import typing\nif typing.TYPE_CHECKING:\n    from torch import Tensor",
    ),
    "torch lazily": ("adamserve.optim.base", "class A:\n    def f(self):\n        import torch"),
    "the version": ("adamserve.observe.exporter", "from adamserve import __version__"),
    "the face from workers": ("workers.task", "import adamserve"),
    "training from the cli, lazily": (
        "adamserve.cli.train",
        "def f():\n    from adamserve.train.run import train",
    ),
}


@pytest.mark.parametrize(("module", "source"), ALLOWED.values(), ids=ALLOWED)
def test_what_the_table_allows_is_let_through(module: str, source: str) -> None:
    assert violations(source, module) == []
