"""Statistics in, Prometheus samples out, on a port of their own."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adamserve import __version__
from adamserve.errors import Unavailable
from adamserve.metrics import Exporter, Observed, cumulative
from adamserve.service.controller import JobStatus, Rollback
from adamserve.shard import ShardStatistics
from adamserve.values import Clocks, Stamp

SHARD = ShardStatistics(
    shard=1,
    stamp=Stamp(2, 40),
    pushes={"APPLIED": 39, "STALE": 1},
    staleness={0: 30, 1: 7, 5: 2, 700: 1},
    apply_seconds=0.25,
    bytes_in=1000,
    bytes_out=2000,
    state_bytes=300,
    live=("a", "b"),
    kernel="compiled",
)
STATUS = JobStatus(
    name="job",
    clocks=Clocks([SHARD.stamp]),
    epochs=(2,),
    healthy=True,
    failed="",
    kernels=("compiled",),
    shards=(SHARD,),
    rollbacks=(Rollback(1, 2, 12, 9, 3, 0.5, "killed"),),
    checkpoints=3,
    checkpoint_age_s=4.5,
)
EXPECTED = {
    ("adamserve_pushes_total", "APPLIED"): 39,
    ("adamserve_pushes_total", "STALE"): 1,
    ("adamserve_bytes_total", "in"): 1000,
    ("adamserve_bytes_total", "out"): 2000,
    ("adamserve_apply_seconds_total", ""): 0.25,
    ("adamserve_staleness_updates_bucket", "0.0"): 30,
    ("adamserve_staleness_updates_bucket", "1.0"): 37,
    ("adamserve_staleness_updates_bucket", "4.0"): 37,
    ("adamserve_staleness_updates_bucket", "8.0"): 39,
    ("adamserve_staleness_updates_bucket", "+Inf"): 40,
    ("adamserve_staleness_updates_count", ""): 40,
    ("adamserve_staleness_updates_sum", ""): 7 + 10 + 700,
    ("adamserve_clock", ""): 40,
    ("adamserve_epoch", ""): 2,
    ("adamserve_state_bytes", ""): 300,
    ("adamserve_pushers_alive", ""): 2,
    ("adamserve_rollbacks_total", ""): 1,
    ("adamserve_checkpoint_age_seconds", ""): 4.5,
    ("adamserve_loss", ""): 0.75,
    ("adamserve_test_accuracy_ratio", ""): 0.9,
    ("adamserve_build_info", __version__): 1,
}


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Samples by name and the label that tells them apart."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found = {}
    for family in families:
        assert family.documentation.endswith(".")
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("job", "shard")}
            found[(sample.name, "".join(labels.values()))] = sample.value
    return found


def test_every_statistic_is_exported() -> None:
    exporter = Exporter.serve("127.0.0.1", 0)
    try:
        assert scrape(exporter.port) == {("adamserve_build_info", __version__): 1}
        exporter.show(Observed(job="job", status=STATUS, loss=0.75, test_accuracy=0.9))
        found = scrape(exporter.port)
        assert {key: found[key] for key in EXPECTED} == EXPECTED
    finally:
        exporter.close()


def test_buckets_are_cumulative_and_end_with_everything() -> None:
    buckets, total = cumulative({0: 2, 3: 1, 10_000: 4})
    counts = [count for _, count in buckets]
    assert counts == sorted(counts)
    assert buckets[-1] == ("+Inf", 7.0)
    assert total == 3 + 40_000


def test_a_taken_port_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"metrics_port: cannot listen on 127.0.0.1:{port}"):
            Exporter.serve("127.0.0.1", port)
