"""The metrics of a process that Ray placed: on any free port of its node."""

from __future__ import annotations

from collections.abc import Sequence

import ray
from prometheus_client.registry import Collector

from adamserve.job import host_port, is_loopback
from adamserve.observe.exporter import Exporter
from adamserve.observe.families import Process


def node_address(host: str | None) -> str:
    """Where a process of a service at `host` listens: the loopback of its node, or the node's own address."""
    return host if host is not None and is_loopback(host) else str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def expose(host: str, process: Process, collect: Sequence[Collector]) -> tuple[Exporter, str]:
    """Serve this process's metrics for as long as it lives; returns also the address, host:port.

    Raises:
        Unavailable: there is no free port.
    """
    here = node_address(host)
    exporter = Exporter(here, 0, process=process, collect=collect)
    return exporter, host_port(here, exporter.port)
