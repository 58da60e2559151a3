"""Statistics in, Prometheus samples out, on a port of their own."""

from __future__ import annotations

import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adamserve import __version__
from adamserve.errors import Unavailable
from adamserve.observe.exporter import THREADS, Exporter, Reading
from adamserve.observe.families import (
    FAMILIES,
    JOB_FAMILIES,
    JOBS_SHOWN,
    RPC_FAMILIES,
    SHARD_FAMILIES,
    WORKER_FAMILIES,
    Process,
    cumulative,
)
from adamserve.observe.rpc_counts import METHODS_KNOWN, Calls
from adamserve.observe.state import JobState, Rollback
from adamserve.shard.durations import APPLY_BUCKETS, PUSH_BUCKETS, QUEUE_BUCKETS, Stopwatch, Times
from adamserve.shard.events import Event
from adamserve.shard.statistics import PusherStatistics, Seen, ShardStatistics
from adamserve.values import Stamp


def times(bounds: tuple[float, ...], first: int, above: int, total: float) -> Times:
    return Times(bounds, (first, *(0,) * (len(bounds) - 1), above), total)


SHARD = ShardStatistics(
    shard=1,
    stamp=Stamp(2, 40),
    pushes={"APPLIED": 39, "STALE": 1},
    staleness={0: 30, 1: 7, 5: 2, 700: 1},
    apply_seconds=times(APPLY_BUCKETS, 38, 1, 0.25),
    bytes_in=1000,
    bytes_out=2000,
    state_bytes=300,
    live=("a", "b"),
    kernel="compiled",
    trainers=2,
    silent=4,
    lease_expiries=3,
    seen=Seen(2.5, 0.0625, 0.125),
    waiting=5,
    push_seconds=times(PUSH_BUCKETS, 7, 2, 81.5),
    queue_seconds=times(QUEUE_BUCKETS, 8, 1, 130.5),
    pushers=(PusherStatistics("a", 39, 98.5), PusherStatistics("b", 0, None)),
)
ROLLBACK = Rollback(
    shard=1, incarnation=2, clock_before=12, clock_after=9, checkpoint=3, seconds=0.5, reason="killed"
)
JOB = JobState(
    job="job",
    consistency="ssp:3",
    rule="Adam",
    rate=0.125,
    loss=0.75,
    best_loss=0.25,
    losses_not_finite=2,
    regret=6.25,
    regret_steps=50,
    numbers={"test_accuracy": 0.9, "average_regret_bound": 64.0, "F1": 0.875},
    checkpoint=3,
    checkpoint_age_s=4.5,
    checkpoint_seconds=0.75,
    unsaved_updates=11,
    clock_skew=6,
    updates_per_s=12.5,
    down=(3,),
    rollbacks=(ROLLBACK,),
    shards=(SHARD,),
    events=(
        Event(50.0, "invalid", (1,), "a", "w: the gradient holds NaN or infinity", 7),
        Event(60.0, "rollback", (1,), "", "restored from checkpoint 3: killed"),
    ),
)


WORKER = ("job", 2, 30, {"pull": 1.5, "compute": 2.5, "push": 3.5})
CALLS = Calls()
for code in ("OK", "OK", "NOT_FOUND"):
    CALLS.started("Push")
    CALLS.handled("Push", code)
CALLS.started("Pull", carrier="direct")

DRIVER = {
    ("adamserve_build_info", f"driver {__version__}"): 1,
    ("adamserve_jobs", ""): 1,
    ("adamserve_shard_up", "1"): 1,
    ("adamserve_shard_up", "3"): 0,
    ("adamserve_updates_per_second", ""): 12.5,
    ("adamserve_clock_skew_updates", ""): 6,
    ("adamserve_durability_lag_updates", ""): 11,
    ("adamserve_rollbacks_total", ""): 1,
    ("adamserve_checkpoint_age_seconds", ""): 4.5,
    ("adamserve_checkpoint_duration_seconds", ""): 0.75,
    ("adamserve_learning_rate", "Adam"): 0.125,
    ("adamserve_loss", ""): 0.75,
    ("adamserve_best_loss", ""): 0.25,
    ("adamserve_losses_not_finite_total", ""): 2,
    ("adamserve_regret", ""): 6.25,
    ("adamserve_average_regret", ""): 0.125,
    ("adamserve_average_regret_bound", ""): 64,
    ("adamserve_test_accuracy_ratio", ""): 0.9,
}
RPC = {
    ("adamserve_rpc_started_total", "grpc Push"): 3,
    ("adamserve_rpc_started_total", "direct Pull"): 1,
    ("adamserve_rpc_handled_total", "grpc OK Push"): 2,
    ("adamserve_rpc_handled_total", "grpc NOT_FOUND Push"): 1,
}
OF_SHARD = {
    ("adamserve_build_info", f"shard {__version__}"): 1,
    ("adamserve_pushes_total", "APPLIED 1"): 39,
    ("adamserve_pushes_total", "STALE 1"): 1,
    ("adamserve_pushes_total", "DUPLICATE 1"): 0,
    ("adamserve_pushes_total", "INVALID 1"): 0,
    ("adamserve_bytes_total", "in 1"): 1000,
    ("adamserve_bytes_total", "out 1"): 2000,
    ("adamserve_staleness_updates_bucket", "0.0 1"): 30,
    ("adamserve_staleness_updates_bucket", "1.0 1"): 37,
    ("adamserve_staleness_updates_bucket", "4.0 1"): 37,
    ("adamserve_staleness_updates_bucket", "8.0 1"): 39,
    ("adamserve_staleness_updates_bucket", "+Inf 1"): 40,
    ("adamserve_staleness_updates_count", "1"): 40,
    ("adamserve_staleness_updates_sum", "1"): 7 + 10 + 700,
    ("adamserve_push_seconds_bucket", "0.0005 1"): 7,
    ("adamserve_push_seconds_bucket", "30.0 1"): 7,
    ("adamserve_push_seconds_bucket", "+Inf 1"): 9,
    ("adamserve_push_seconds_count", "1"): 9,
    ("adamserve_push_seconds_sum", "1"): 81.5,
    ("adamserve_queue_seconds_bucket", "1e-05 1"): 8,
    ("adamserve_queue_seconds_bucket", "120.0 1"): 8,
    ("adamserve_queue_seconds_bucket", "+Inf 1"): 9,
    ("adamserve_queue_seconds_sum", "1"): 130.5,
    ("adamserve_apply_seconds_bucket", "1e-05 1"): 38,
    ("adamserve_apply_seconds_bucket", "+Inf 1"): 39,
    ("adamserve_apply_seconds_sum", "1"): 0.25,
    ("adamserve_pushes_waiting", "1"): 5,
    ("adamserve_clock", "1"): 40,
    ("adamserve_incarnation", "1"): 2,
    ("adamserve_state_bytes", "1"): 300,
    ("adamserve_gradient_norm", "1"): 2.5,
    ("adamserve_update_max_norm", "1"): 0.0625,
    ("adamserve_update_max_norm_bound", "1"): 0.125,
    ("adamserve_pushers_alive", "worker 1"): 0,
    ("adamserve_pushers_alive", "trainer 1"): 2,
    ("adamserve_pushers_silent", "1"): 4,
    ("adamserve_lease_expiries_total", "1"): 3,
}
OF_WORKER = {
    ("adamserve_build_info", f"worker {__version__}"): 1,
    ("adamserve_worker_steps_total", "2"): 30,
    ("adamserve_worker_seconds_total", "pull 2"): 1.5,
    ("adamserve_worker_seconds_total", "compute 2"): 2.5,
    ("adamserve_worker_seconds_total", "push 2"): 3.5,
}


@contextmanager
def exporter(process: Process, shard: ShardStatistics = SHARD) -> Iterator[Exporter]:
    """A process's endpoint, with everything that such a process has."""
    rpc = Reading(RPC_FAMILIES, lambda: [CALLS])
    collect = {
        "driver": [rpc],
        "shard": [Reading(SHARD_FAMILIES, lambda: [("job", shard)]), rpc],
        "worker": [Reading(WORKER_FAMILIES, lambda: [WORKER])],
    }
    made = Exporter("127.0.0.1", 0, process=process, collect=collect[process])
    try:
        yield made
    finally:
        made.close()


def text_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Samples by name and the labels that tell them apart, in the order of the labels' names."""
    found = {}
    for family in text_string_to_metric_families(text_of(port)):
        assert family.documentation.endswith(".")
        for sample in family.samples:
            labels = {k: v for k, v in sorted(sample.labels.items()) if k != "job"}
            found[sample.name, " ".join(labels.values())] = sample.value
    return found


@pytest.mark.parametrize(
    ("process", "expected"),
    [("driver", DRIVER | RPC), ("shard", OF_SHARD | RPC), ("worker", OF_WORKER)],
)
def test_every_family_of_a_process_is_exported_and_no_other(
    process: Process, expected: dict[tuple[str, str], float]
) -> None:
    with exporter(process) as made:
        if process == "driver":
            assert {name for name, _ in scrape(made.port)} & JOB_FAMILIES.keys() == set()
            made.show(JOB)
        found = scrape(made.port)
    assert {key: found.get(key) for key in expected} == expected
    names = {name.removesuffix(suffix) for name, _ in found for suffix in ("_bucket", "_count", "_sum")}
    histograms = {name for name, family in FAMILIES.items() if family.histogram}
    names -= {f"{name}{suffix}" for name in histograms for suffix in ("_bucket", "_count", "_sum")}
    assert names == {name for name, family in FAMILIES.items() if process in family.processes}
    assert {name for name, _ in expected if not name.endswith(("_bucket", "_count", "_sum"))} | (
        histograms & names
    ) == names


def test_what_is_not_known_is_not_exported() -> None:
    with exporter("shard", replace(SHARD, seen=None)) as made:
        assert {name for name, _ in scrape(made.port) if "norm" in name} == set()
    with exporter("shard", replace(SHARD, seen=Seen(2.0, 0.5, None))) as made:
        assert {name for name, _ in scrape(made.port) if "norm" in name} == {
            "adamserve_gradient_norm",
            "adamserve_update_max_norm",
        }


def test_labels_have_few_values() -> None:
    """Jobs beyond the first 64 are counted and not shown, methods beyond 64 are one, and pushers have no label."""
    calls = Calls()
    for number in range(10 * METHODS_KNOWN):
        calls.started(f"method-{number}")
    made = Exporter("127.0.0.1", 0, collect=[Reading(RPC_FAMILIES, lambda: [calls])])
    try:
        made.show(*(replace(JOB, job=f"job-{number:03}") for number in range(JOBS_SHOWN + 100)))
        text = text_of(made.port)
    finally:
        made.close()
    assert text.count("adamserve_loss{") == JOBS_SHOWN
    assert f'adamserve_loss{{job="job-{JOBS_SHOWN - 1:03}"}}' in text
    assert f"adamserve_jobs {JOBS_SHOWN + 100}.0" in text
    assert text.count("adamserve_rpc_started_total{") == METHODS_KNOWN + 1
    assert f'{{carrier="grpc",method="other"}} {9.0 * METHODS_KNOWN}' in text
    assert {label for family in FAMILIES.values() for label in family.labels} == {
        "job", "shard", "worker", "outcome", "direction", "kind", "part", "rule",
        "carrier", "method", "code", "version", "process",
    }  # fmt: skip


def test_a_job_s_name_cannot_write_samples() -> None:
    with exporter("driver") as made:
        made.show(replace(JOB, job='a"} 1\nadamserve_evil{job="b'))
        assert ("adamserve_evil", "") not in scrape(made.port)


def test_buckets_are_cumulative_and_end_with_everything() -> None:
    buckets, total = cumulative({0: 2, 3: 1, 10_000: 4})
    counts = [count for _, count in buckets]
    assert counts == sorted(counts)
    assert buckets[-1] == ("+Inf", 7.0)
    assert total == 3 + 40_000


def test_a_stopwatch_counts_up_to_and_with_each_bound() -> None:
    watch = Stopwatch((0.5, 1.0))
    for seconds in (0.0, 0.5, 0.75, 1.0, 1.25, 4.0):
        watch.add(seconds)
    assert watch.read() == Times((0.5, 1.0), (2, 2, 2), 7.5)


def test_requests_that_break_off_keep_nobody_from_being_answered() -> None:
    def broken() -> tuple[str, str]:
        raise RuntimeError("planted")

    before = set(threading.enumerate())
    made = Exporter("127.0.0.1", 0, open_pages={"/broken": broken})
    try:
        for i in range(3 * THREADS):
            with socket.create_connection(("127.0.0.1", made.port)) as one:
                if i % 3 == 0:
                    one.sendall(b"\x00\xff / HTTP/9\r\n\r\n")
                elif i % 3 == 1:  # gone in the middle of a line, by a reset
                    one.sendall(b"GET /metr")
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    with suppress(urllib.error.HTTPError):
                        urllib.request.urlopen(f"http://127.0.0.1:{made.port}/broken", timeout=10)
        with urllib.request.urlopen(f"http://127.0.0.1:{made.port}/metrics", timeout=10) as answer:
            assert b"adamserve_build_info" in answer.read()
        assert sum(thread.is_alive() for thread in set(threading.enumerate()) - before) == THREADS
    finally:
        made.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.is_alive()]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", made.port), timeout=10)


def test_a_taken_port_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"metrics_port: cannot listen on 127.0.0.1:{port}"):
            Exporter("127.0.0.1", port)
