"""The wheel holds the C sources: without them an installed package would have no compiled kernels."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_has_every_c_source(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith((".c", ".cu", ".h"))}
    kinds = ("*.c", "*.cu", "*.h")
    sources = {str(p.relative_to(ROOT)) for kind in kinds for p in (ROOT / "adamserve").rglob(kind)}
    assert "adamserve/optim/engine/rows.c" in sources
    assert packed == sources
