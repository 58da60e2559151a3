"""Ray's view of the shards: one process hosting one shard of every job. No decisions here."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayTaskError

from adamserve import checkpoint, optim
from adamserve.cluster.exporting import expose
from adamserve.edge.publishing import EncodedPublisher
from adamserve.errors import AdamServeError, NotFound
from adamserve.job import JobConfig
from adamserve.observe import logs
from adamserve.observe.exporter import Reading
from adamserve.observe.families import JOBS_SHOWN, RPC_FAMILIES, SHARD_FAMILIES, ShardOfJob
from adamserve.observe.rpc_counts import Calls
from adamserve.shard import consistency
from adamserve.shard.geometry import partition
from adamserve.shard.host import GLANCE_S, ShardHost
from adamserve.shard.statistics import ShardStatistics
from adamserve.values import Array, Deadline, Joined, PullRequest, Push, Receipt, ShardState, Stamp

log = logging.getLogger("adamserve.shard")

CONCURRENCY = {"push": 64, "pull": 64, "control": 8}
"""Threads for each kind of call: pushes that wait for their round must not keep pulls or renewals out."""

Published = Sequence["ray.ObjectRef[Mapping[str, Array]]"]
"""One reference in a list, so that Ray hands over the reference and not a copy of the parameters."""


Hosts = Callable[[str], ShardHost]
"""Finds the host of a job on this shard, or raises NotFound."""


class Endpoint(Protocol):
    """Another way into a shard's process than Ray, while it runs."""

    @property
    def address(self) -> str:
        """host:port of its gRPC services."""

    @property
    def direct_address(self) -> str:
        """host:port for bare connections."""

    def serve(self) -> None:
        """Say that the shard is ready."""

    def drain(self, grace_s: float) -> None:
        """Take no new calls, let the running ones end within `grace_s`, and stop."""


class Edge(Protocol):
    """Starts endpoints; it travels to every shard's process by pickle."""

    def open(self, hosts: Hosts, counts: Calls) -> Endpoint:
        """Listen, answer calls from these hosts, and count them. Not ready until `Endpoint.serve`."""


def publish(arrays: Mapping[str, Array]) -> Published:
    """Copy a shard's arrays into Ray's object store."""
    return [ray.put(dict(arrays))]


def own_error(error: RayTaskError) -> Exception:
    """The error that our own code raised inside an actor, or Ray's where it was another's."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, AdamServeError) else error


@ray.remote(concurrency_groups=CONCURRENCY)  # type: ignore[call-overload] # not in Ray's stubs
class ShardActor:
    """The process of shard `index`: it hosts that shard of every job of the service."""

    def __init__(
        self,
        index: int,
        num_shards: int,
        device: str,
        threads: int,
        edge: Edge | None = None,
        metrics_host: str | None = None,
        log_as: logs.LogConfig | None = None,
    ) -> None:
        from adamserve.shard.shard import (
            Shard,  # and with it torch, which the service's other processes do without
        )

        if log_as is not None:
            logs.set_up(log_as)
        if threads:
            optim.set_threads(threads)
        self._index = index
        self._num_shards = num_shards
        self._device = device
        self._shard = Shard
        self._hosts: dict[str, ShardHost] = {}
        self._calls = Calls()
        self._publisher = EncodedPublisher()
        self._endpoint = edge.open(self._host, self._calls) if edge is not None else None
        self._metrics = ""
        if metrics_host is not None:
            collect = [Reading(SHARD_FAMILIES, self._glance), Reading(RPC_FAMILIES, lambda: [self._calls])]
            _, self._metrics = expose(metrics_host, "shard", collect)
        address = self._endpoint.address if self._endpoint is not None else None
        log.info("shard has started", extra=logs.fields(shard=index, device=device, endpoint=address))

    @ray.method(concurrency_group="control")
    def open(
        self,
        config: JobConfig,
        incarnation: int,
        initial: Mapping[str, Array] | None = None,
        folder: Path | None = None,
    ) -> tuple[Stamp, str]:
        """Take up a job: from `initial` (this shard's spans by tensor), or from a checkpoint's folder.

        Returns:
            The stamp that the shard stands at, and how its rule runs (executor and reason).
        """
        parts = partition(config.tensors, self._num_shards)
        spans = parts.shards[self._index]
        if folder is not None:
            manifest = checkpoint.read_manifest(folder)
            state = checkpoint.load_shard(
                folder, manifest, shard=self._index, spans=spans, incarnation=incarnation
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
        self._hosts[config.name] = ShardHost(parts, shard, self._publisher)
        log.info(
            "job is open",
            extra=logs.fields(
                job=config.name,
                shard=self._index,
                incarnation=shard.stamp.incarnation,
                clock=shard.stamp.clock,
            ),
        )
        kernels = shard.store.kernels
        return shard.stamp, f"{kernels[0].executor}: {kernels[0].reason}" if kernels else "no elements"

    @ray.method(concurrency_group="push")
    def push(self, job: str, push: Push, timeout_s: float) -> Receipt:
        """As `ShardHost.push`."""
        return self._host(job).push(push, deadline=Deadline.after(timeout_s))

    @ray.method(concurrency_group="pull")
    def pull(
        self, job: str, pusher: str | None, training: bool, at_least: int, timeout_s: float
    ) -> tuple[Stamp, Published]:
        """As `ShardHost.pull`; the handle is a list of one reference to the flat arrays by dtype."""
        deadline = Deadline.after(timeout_s)
        asked = PullRequest(pusher or "", training=training, at_least=at_least)
        parameters = self._host(job).pull(asked, deadline=deadline)
        return parameters.stamp, publish(parameters.arrays)

    @ray.method(concurrency_group="pull")
    def pull_rows(
        self,
        job: str,
        rows: Mapping[str, Array],
        pusher: str | None,
        training: bool,
        at_least: int,
        timeout_s: float,
    ) -> tuple[Stamp, dict[str, Array]]:
        """As `ShardHost.pull_rows`."""
        deadline = Deadline.after(timeout_s)
        asked = PullRequest(pusher or "", training=training, at_least=at_least, rows=rows)
        parameters = self._host(job).pull(asked, deadline=deadline)
        return parameters.stamp, dict(parameters.arrays)

    @ray.method(concurrency_group="control")
    def join(self, job: str, pusher: str, lease_s: float, last_seq: int, session: str = "") -> Joined:
        """As `Shard.join`."""
        return self._host(job).join(
            pusher,
            lease_s=lease_s,
            last_seq=last_seq,
            session=session,
            kind="trainer" if session else "worker",
        )

    @ray.method(concurrency_group="control")
    def renew(self, job: str, pusher: str) -> None:
        """As `Shard.renew`."""
        self._host(job).renew(pusher)

    @ray.method(concurrency_group="control")
    def leave(self, job: str, pusher: str, session: str = "") -> None:
        """As `Shard.leave`."""
        self._host(job).leave(pusher, session)

    @ray.method(concurrency_group="control")
    def write(self, job: str, folder: Path) -> checkpoint.ShardEntry:
        """Write one consistent cut and seal it; pushes wait for the first half only."""
        return checkpoint.seal_shard(self._host(job).cut(partial(checkpoint.write_shard, folder)))

    @ray.method(concurrency_group="control")
    def drop(self, job: str) -> None:
        """Forget a job."""
        self._hosts.pop(job, None)

    @ray.method(concurrency_group="control")
    def statistics(self) -> Mapping[str, ShardStatistics]:
        """By job."""
        return {job: host.statistics() for job, host in list(self._hosts.items())}

    @ray.method(concurrency_group="control")
    def process(self) -> dict[str, Any]:
        """Who this process is: its pid and node, and the addresses of its endpoint and its metrics ("" without)."""
        return {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "endpoint": self._endpoint.address if self._endpoint is not None else "",
            "direct": self._endpoint.direct_address if self._endpoint is not None else "",
            "metrics": self._metrics,
        }

    @ray.method(concurrency_group="control")
    def serve(self) -> None:
        """Say at the endpoint that the shard is ready."""
        if self._endpoint is not None:
            self._endpoint.serve()

    @ray.method(concurrency_group="control")
    def drain(self, grace_s: float) -> None:
        """As `Endpoint.drain`."""
        if self._endpoint is not None:
            self._endpoint.drain(grace_s)

    def _glance(self) -> list[ShardOfJob]:
        """For a scrape: what `statistics` returns, of the jobs that are shown."""
        hosts = sorted(self._hosts.items())[:JOBS_SHOWN]
        return [(job, host.glance(GLANCE_S / len(hosts))) for job, host in hosts]

    def _host(self, job: str) -> ShardHost:
        try:
            return self._hosts[job]
        except KeyError:
            raise NotFound(
                f"no job {job!r} on shard {self._index}", field="job", fix="create it first"
            ) from None
