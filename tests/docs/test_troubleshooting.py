"""docs/troubleshooting.md quotes what the program says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"

OTHERS = {"failed to connect", "failed to map segment"}
"""What gRPC and the system's loader say."""

ROWS = [row.split("|")[1] for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("| `")]


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Every text in the package's code."""
    return [
        " ".join(node.value.split())
        for path in (ROOT / "adamserve").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


@pytest.mark.parametrize("cell", ROWS, ids=lambda cell: cell.strip()[:40])
def test_a_quoted_message_is_one_of_ours(cell: str, said: list[str]) -> None:
    quoted = re.findall(r"`([^`]+)`", cell)
    pieces = [
        piece.strip()
        for text in quoted
        for piece in re.split(r"\.\.\.|'[^']*'|\bHOST(?::PORT)?|\b[NXY]\b|[:=](?:\s|$)|lr is .*", text)
    ]
    long = [piece for piece in pieces if len(piece) >= 6 and piece not in OTHERS]
    assert long or any(piece in OTHERS for piece in pieces), cell
    for piece in long:
        assert any(piece in text for text in said), f"nothing says {piece!r}"
