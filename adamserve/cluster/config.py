"""How a service runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adamserve.edge.security import Security
from adamserve.edge.shard_edge import Advertised, Ports
from adamserve.errors import InvalidArgument
from adamserve.job import is_loopback
from adamserve.observe.logs import LogConfig

LOOPBACK = "127.0.0.1"

CALL_TIMEOUT_S = 120.0
"""Longest that opening, restoring or writing a shard may take."""

SHARD_CPUS = 0.1
"""CPUs that Ray reserves for a shard; above 0, for Ray spreads only what needs something."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a service's processes listen, and whom they answer, with the reason.

    Attributes:
        host, shard_host: of ControlService and of each shard; None for their nodes' own addresses.
        closed: a call needs a token or the service's secret even where users have no tokens.
    """

    host: str | None
    shard_host: str | None
    closed: bool
    reason: str


def listening(host: str | None, *, alone: bool, insecure: bool) -> Listening:
    """Decide where to listen, asked for `host` (None: whatever serves the cluster), on one node if `alone`."""
    if alone and (host is None or is_loopback(host)):
        host = host or LOOPBACK
        return Listening(host, host, False, "the cluster is one node, so loopback reaches everything")
    where = "the cluster has several nodes" if not alone else f"{host} can be reached from other machines"
    return Listening(host, None, not insecure, f"{where}, so shards listen on their nodes' own addresses")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What `Service.start` and `adamserve serve` both take; see the former."""

    name: str = "adamserve"
    shards: int = 1
    gpus_per_shard: float = 0.0
    threads_per_shard: int = 0
    checkpoint_dir: Path | None = None
    host: str = LOOPBACK
    port: int = 0
    shard_ports: Ports | None = None
    advertise: Advertised | None = None
    security: Security = field(default_factory=Security)
    log: LogConfig | None = None

    def __post_init__(self) -> None:
        if not self.shards >= 1:
            raise InvalidArgument(f"must be at least 1, got {self.shards}", field="shards")
        places = self.advertise.places if self.advertise is not None and self.advertise.by_shard else ()
        if places and len(places) != self.shards:
            raise InvalidArgument(
                f"has {len(places)} addresses for {self.shards} shards",
                field="advertise",
                fix="give host:port for each shard, or one host for all",
            )
        for name in ("gpus_per_shard", "threads_per_shard"):
            if not getattr(self, name) >= 0:
                raise InvalidArgument(f"must be at least 0, got {getattr(self, name)}", field=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceConfig(Options):
    """How a service runs.

    Attributes:
        name: of the controller's actor in Ray; the shards' begin with it.
        shard_host: where shards listen; None for each node's own address.
        secret: what the service's own processes show when they call. It travels through Ray only.
        metrics_host: as for `Service.start`.
    """

    shard_host: str | None = LOOPBACK
    secret: str = field(default="", repr=False)
    metrics_host: str | None = None
