"""Prometheus metrics, read from statistics at scrape time: nothing is counted here.

One registry and one port a process. The exporter is shown the latest `Observed` and turns it into samples when it is
scraped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import HTTPServer
from typing import Protocol, Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from adamserve import __version__
from adamserve.errors import Unavailable
from adamserve.shard import ShardStatistics

STALENESS_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Upper bounds of the staleness histogram, in updates."""


class RollbackSeen(Protocol):
    """What the metrics need of a rollback."""

    @property
    def shard(self) -> int: ...


class StatusSeen(Protocol):
    """What the metrics need of a job's status (`adamserve.service.controller.JobStatus`)."""

    @property
    def shards(self) -> tuple[ShardStatistics, ...]: ...
    @property
    def rollbacks(self) -> tuple[RollbackSeen, ...]: ...
    @property
    def checkpoint_age_s(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Observed:
    """A job at one moment."""

    job: str
    status: StatusSeen | None
    loss: float | None
    test_accuracy: float | None


class JobCollector(Collector):
    """Turns what was last observed into samples."""

    def __init__(self) -> None:
        self.observed: tuple[Observed, ...] = ()

    def collect(self) -> Iterator[Metric]:
        """Samples of the moment last observed."""
        info = InfoMetricFamily("adamserve_build", "Version of adamserve.")
        info.add_metric([], {"version": __version__})
        yield info
        families: dict[str, Metric] = {}
        for observed in self.observed:
            for family in _observed(observed):
                kept = families.setdefault(family.name, family)
                if kept is not family:
                    kept.samples += family.samples
        yield from families.values()


class Exporter:
    """An HTTP endpoint for Prometheus, and what it shows.

    Args:
        server, thread: what prometheus_client started.
        collector: the collector on its registry.
    """

    def __init__(self, server: HTTPServer, thread: threading.Thread, collector: JobCollector) -> None:
        self._server = server
        self._thread = thread
        self._collector = collector

    @classmethod
    def serve(cls, host: str, port: int) -> Self:
        """Listen on host:port (0: any free port).

        Raises:
            Unavailable: the port cannot be bound.
        """
        registry = CollectorRegistry()
        collector = JobCollector()
        registry.register(collector)
        try:
            server, thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                field="metrics_port",
                fix="choose another",
            ) from None
        return cls(server, thread, collector)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_port)

    def show(self, *observed: Observed) -> None:
        """Show these jobs from now on."""
        self._collector.observed = observed

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _observed(observed: Observed) -> Iterator[Metric]:
    if observed.loss is not None:
        yield _gauge(
            "adamserve_loss", "Training loss, mean of the last 50 batches.", observed.job, observed.loss
        )
    if observed.test_accuracy is not None:
        text = "Share of the test set classified rightly, at the last evaluation."
        yield _gauge("adamserve_test_accuracy_ratio", text, observed.job, observed.test_accuracy)
    if observed.status is not None:
        yield from _job(observed.job, observed.status)


def _gauge(name: str, text: str, job: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["job"])
    family.add_metric([job], value)
    return family


def _job(job: str, status: StatusSeen) -> Iterator[Metric]:
    by_shard = ["job", "shard"]
    pushes = CounterMetricFamily(
        "adamserve_pushes", "Pushes decided, by outcome.", labels=[*by_shard, "outcome"]
    )
    traffic = CounterMetricFamily(
        "adamserve_bytes", "Gradients taken in and parameters given out.", labels=[*by_shard, "direction"]
    )
    applying = CounterMetricFamily("adamserve_apply_seconds", "Time spent inside the rule.", labels=by_shard)
    staleness = HistogramMetricFamily(
        "adamserve_staleness_updates", "Updates between a push's pull and its arrival.", labels=by_shard
    )
    clock = GaugeMetricFamily("adamserve_clock", "Updates applied.", labels=by_shard)
    epoch = GaugeMetricFamily(
        "adamserve_epoch", "Grows by one each time the shard is restored.", labels=by_shard
    )
    memory = GaugeMetricFamily("adamserve_state_bytes", "Parameters and slots.", labels=by_shard)
    alive = GaugeMetricFamily("adamserve_pushers_alive", "Pushers whose lease runs.", labels=by_shard)
    for shard in status.shards:
        labels = [job, str(shard.shard)]
        for outcome, count in sorted(shard.pushes.items()):
            pushes.add_metric([*labels, str(outcome)], count)
        traffic.add_metric([*labels, "in"], shard.bytes_in)
        traffic.add_metric([*labels, "out"], shard.bytes_out)
        applying.add_metric(labels, shard.apply_seconds)
        buckets, total = cumulative(shard.staleness)
        staleness.add_metric(labels, buckets, total)
        clock.add_metric(labels, shard.stamp.clock)
        epoch.add_metric(labels, shard.stamp.epoch)
        memory.add_metric(labels, shard.state_bytes)
        alive.add_metric(labels, len(shard.live))
    yield from (pushes, traffic, applying, staleness, clock, epoch, memory, alive)
    rollbacks = CounterMetricFamily(
        "adamserve_rollbacks", "Restores of a shard from a checkpoint.", labels=["job"]
    )
    rollbacks.add_metric([job], len(status.rollbacks))
    yield rollbacks
    if status.checkpoint_age_s is not None:
        yield _gauge(
            "adamserve_checkpoint_age_seconds", "Since the last checkpoint.", job, status.checkpoint_age_s
        )


def cumulative(counts: Mapping[int, int]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative histogram buckets and the sum, from exact counts by value."""
    buckets = [
        (str(float(bound)), float(sum(n for value, n in counts.items() if value <= bound)))
        for bound in STALENESS_BUCKETS
    ]
    buckets.append(("+Inf", float(sum(counts.values()))))
    return buckets, float(sum(value * n for value, n in counts.items()))
