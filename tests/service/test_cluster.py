"""On a cluster of two nodes that runs already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

SCRIPT = """
import subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
try:
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    done = subprocess.run(
        [sys.executable, "-m", "adamserve", "train", "--address", cluster.address, "--run-dir", sys.argv[1],
         "--max-steps", "10", "--format", "json"],
        capture_output=True, text=True, timeout=150, check=False,
    )
    alone = subprocess.run(
        [sys.executable, "-m", "adamserve", "train", "--run-dir", sys.argv[2], "--max-steps", "1", "--format", "json"],
        capture_output=True, text=True, timeout=150, check=False,
    )
finally:
    cluster.shutdown()
sys.stderr.write(done.stderr + alone.stderr)
sys.stdout.write(done.stdout + alone.stdout)
sys.exit(done.returncode or alone.returncode)
"""


def test_training_on_two_nodes_puts_a_shard_on_each(tmp_path: Path) -> None:
    """In a process of its own: one process can be connected to one cluster only.

    A training without an address takes no notice of the cluster, though Ray notes it as the machine's latest.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(tmp_path / "alone")],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record, alone = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert record["clocks"] == [20, 20]
    nodes = {shard["node"] for shard in record["shards"]}
    assert len(nodes) == 2
    assert alone["clocks"] == [2, 2]
    assert not nodes & {shard["node"] for shard in alone["shards"]}
