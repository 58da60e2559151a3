"""Debian's Prometheus, unpacked into the cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@lru_cache
def binary(name: str) -> str:
    """`prometheus` or `promtool`: the machine's own or the cache's; skips where there is neither."""
    if found := shutil.which(name):
        return found
    done = subprocess.run(
        [ROOT / "scripts" / "debian", "prometheus"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no Prometheus: {done.stderr.strip()[-300:]}")
    return str(Path(done.stdout.strip()) / "usr/bin" / name)


def promtool(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    return subprocess.run(
        [binary("promtool"), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60, input=stdin,
    )  # fmt: skip


def ask(port: int, path: str, **parameters: str) -> Any:
    """What Prometheus' HTTP API answers."""
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}?{query}", timeout=10) as answer:
        return json.load(answer)["data"]
