"""A rule and a consistency mode of another package train through a whole service, known by their entry points alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adamserve.errors import InvalidArgument
from adamserve.shard import consistency

ROOT = Path(__file__).parents[2]

TRAINED = """
import numpy as np
from adamserve import optim, testing

start, aim = np.zeros(64, np.float32), np.linspace(-1, 1, 64, dtype=np.float32)
with testing.Service(shards=2) as service:
    a, b, late = (service.client("job", pusher=name, timeout_s=20.0) for name in ("a", "b", "late"))
    with a, b, late:
        assert a.create({"w": start}, optim.by_name("Lion", lr=0.05), consistency="quorum:2")
        (w, clock), (_, seen) = a.pull(), late.pull()
        for step in range(60):
            waiting = a.push({"w": w["w"] - aim + 0.25}, clock, wait=False)
            receipt, w, clock = b.push_pull({"w": w["w"] - aim - 0.25}, b.pull()[1])
            assert waiting.result().outcome == receipt.outcome == "APPLIED", receipt
            assert receipt.reason.endswith("mean of 2 pushes"), receipt
        assert late.push({"w": start}, seen).outcome == "STALE"
        assert service.status()[0].consistency == "quorum:2"
        print(float(np.abs(w["w"] - aim).max()))
"""


def test_they_train(thirdparty: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(thirdparty), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", TRAINED], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1, "each element is within two steps of its aim"


def test_without_the_package_its_mode_is_unknown() -> None:
    with pytest.raises(InvalidArgument, match="'quorum' is not a consistency mode"):
        consistency.parse("quorum:2")
