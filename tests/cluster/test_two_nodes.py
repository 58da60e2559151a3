"""On a cluster of two nodes that runs already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

ALONE = """
import ray
from adamserve.cluster.ray_runtime import connected

with connected(None, num_cpus=1):
    print(*(node["NodeID"] for node in ray.nodes()))
"""

SCRIPT = f"""
import subprocess, sys
from ray.cluster_utils import Cluster

def run(*command):
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, timeout=150, check=True)
    print(done.stdout.splitlines()[-1])

cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 2}})
try:
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    run("-m", "adamserve", "train", "--address", cluster.address, "--run-dir", sys.argv[1], "--max-steps", "10",
        "--format", "json")
    run("-c", {ALONE!r})
finally:
    cluster.shutdown()
"""


def test_training_on_two_nodes_puts_a_shard_on_each(tmp_path: Path) -> None:
    """In a process of its own: one process can be connected to one cluster only.

    Who gives no address takes no notice of the cluster, though Ray notes it as the machine's latest.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    training, alone = done.stdout.splitlines()[-2:]
    record = json.loads(training)
    assert record["clocks"] == [20, 20]
    nodes = {shard["node"] for shard in record["shards"]}
    assert len(nodes) == 2
    assert len(alone.split()) == 1
    assert not nodes.intersection(alone.split())
