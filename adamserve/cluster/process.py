"""One shard process: it hosts one shard of every job of a service. Plain Python; Ray's shell around it is `actors`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adamserve import checkpoint, optim
from adamserve.edge.publishing import EncodedPublisher
from adamserve.edge.shard_edge import ShardEdge
from adamserve.errors import NotFound, Unavailable
from adamserve.job import JobConfig, host_port
from adamserve.observe import logs
from adamserve.observe.exporter import Exporter, Reading
from adamserve.observe.families import JOBS_SHOWN, RPC_FAMILIES, SHARD_FAMILIES, ShardOfJob
from adamserve.observe.rpc_counts import Calls
from adamserve.shard import consistency
from adamserve.shard.geometry import partition
from adamserve.shard.host import GLANCE_S, ShardHost
from adamserve.shard.statistics import ShardStatistics
from adamserve.values import Array, ShardState, Stamp

log = logging.getLogger("adamserve.shard")


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """Who a shard's process is: its pid on its node, and where it listens.

    Attributes:
        endpoint, direct: host:port of its gRPC services, and for bare connections.
        metrics: host:port of its metrics; empty where it serves none.
    """

    pid: int
    node: str
    endpoint: str
    direct: str
    metrics: str


class ShardProcess:
    """Shard `index` of every job of a service of `shards` shards. Thread-safe.

    Args:
        host, edge: address of this node to listen on, and how.
        node: name of this node.
        device: where the buffers live, "cpu" or "cuda".
        metrics_host: address to serve this process's metrics on; None serves none.

    Raises:
        Unavailable: there is no free port.
    """

    def __init__(
        self,
        index: int,
        shards: int,
        *,
        host: str,
        edge: ShardEdge,
        node: str = "",
        device: str = "cpu",
        metrics_host: str | None = None,
    ) -> None:
        from adamserve.shard.shard import Shard  # with torch, which a service's other processes do without

        self._shard = Shard
        self._index = index
        self._shards = shards
        self._device = device
        self._hosts: dict[str, ShardHost] = {}
        self._calls = Calls()
        self._publisher = EncodedPublisher()
        endpoint = self._endpoint = edge.open(self.host, self._calls, host)
        self._exporter: Exporter | None = None
        metrics = ""
        if metrics_host is not None:
            collect = [Reading(SHARD_FAMILIES, self._glance), Reading(RPC_FAMILIES, lambda: [self._calls])]
            self._exporter = Exporter(metrics_host, 0, process="shard", collect=collect)
            metrics = host_port(metrics_host, self._exporter.port)
        self._info = ProcessInfo(os.getpid(), node, endpoint.address, endpoint.direct_address, metrics)
        where = logs.fields(shard=index, device=device, endpoint=endpoint.address)
        log.info("shard has started", extra=where)

    def host(self, job: str) -> ShardHost:
        """The shard of one job.

        Raises:
            NotFound: there is no such job here.
        """
        try:
            return self._hosts[job]
        except KeyError:
            raise self._unknown(job) from None

    def open(
        self,
        config: JobConfig,
        incarnation: int,
        initial: Mapping[str, Array] | None = None,
        folder: Path | None = None,
    ) -> Stamp:
        """Take up a job: from `initial` (this shard's spans by tensor), or from a checkpoint's folder.

        Returns:
            The stamp that the shard stands at. Whoever waited at an earlier opening of the job gets `Unavailable`.

        Raises:
            CheckpointError: the checkpoint cannot be read.
        """
        parts = partition(config.tensors, self._shards)
        if folder is not None:
            state = checkpoint.load_shard(
                folder,
                checkpoint.read_manifest(folder),
                shard=self._index,
                spans=parts.shards[self._index],
                incarnation=incarnation,
            )
        else:
            state = ShardState(self._index, Stamp(incarnation, 0), (), {"w": dict(initial or {})})
        rule, tensor_rules = optim.rules_of(config.rule, config.tensor_rules)
        shard = self._shard(
            partition=parts,
            state=state,
            rule=rule,
            tensor_rules=tensor_rules,
            consistency=consistency.from_dict(config.consistency),
            exact=config.sparse == "exact",
            device=self._device,
        )
        before = self._hosts.get(config.name)
        self._hosts[config.name] = ShardHost(shard, self._publisher)
        if before is not None:
            before.close(Unavailable("the job was opened anew", field="job", fix="send the same push again"))
        kernels = shard.store.kernels
        kernel = f"{kernels[0].executor}: {kernels[0].reason}" if kernels else "no elements"
        where = {"job": config.name, "shard": self._index, **shard.stamp._asdict()}
        log.info("job is open", extra=logs.fields(**where, kernel=kernel))
        return shard.stamp

    def drop(self, job: str) -> None:
        """Forget a job; pushes and pulls that wait end with `NotFound`. Idempotent."""
        if host := self._hosts.pop(job, None):
            host.close(self._unknown(job))

    def write(self, job: str, folder: Path) -> checkpoint.ShardEntry:
        """Write one consistent cut and seal it; pushes wait for the first half only."""
        return checkpoint.seal_shard(self.host(job).cut(partial(checkpoint.write_shard, folder)))

    def statistics(self) -> Mapping[str, ShardStatistics]:
        """How the shard of each job stands."""
        return {job: host.statistics() for job, host in list(self._hosts.items())}

    def serve(self) -> ProcessInfo:
        """Say at the endpoint that the shard is ready; returns who this process is."""
        self._endpoint.serve()
        return self._info

    def drain(self, grace_s: float) -> None:
        """Take no new calls, and let the running ones end within `grace_s` seconds."""
        self._endpoint.drain(grace_s)

    def cut(self) -> None:
        """End every connection at once and forget every job, as the process's death would."""
        hosts, self._hosts = self._hosts, {}
        self._endpoint.cut()
        for host in hosts.values():
            host.close(Unavailable("the shard's process is gone"))
        if self._exporter is not None:
            self._exporter.close()

    def _unknown(self, job: str) -> NotFound:
        return NotFound(f"no job {job!r} on shard {self._index}", field="job", fix="create it first")

    def _glance(self) -> list[ShardOfJob]:
        """For a scrape: what `statistics` returns, of the jobs that are shown."""
        hosts = sorted(self._hosts.items())[:JOBS_SHOWN]
        return [(job, host.glance(GLANCE_S / len(hosts))) for job, host in hosts]
