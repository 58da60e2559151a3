"""Ray's shells: a shard's process, and the controller. No decisions here."""

from __future__ import annotations

import os
from typing import Any

import ray

from adamserve import optim
from adamserve.client.credentials import Credentials
from adamserve.cluster.config import ServiceConfig
from adamserve.cluster.controller import Controller
from adamserve.cluster.process import ShardProcess
from adamserve.cluster.ray_placement import RayPlacement
from adamserve.cluster.ray_runtime import node_address
from adamserve.edge.control_service import open_control
from adamserve.edge.shard_edge import ShardEdge
from adamserve.observe import logs
from adamserve.observe.rpc_counts import Calls

CONCURRENCY = {"control": 8}
"""Threads of a shard's process for calls through Ray; pushes and pulls come to its own endpoints."""


@ray.remote(concurrency_groups=CONCURRENCY)  # type: ignore[call-overload] # not in Ray's stubs
class ShardActor:
    """Ray's shell around a `ShardProcess`."""

    def __init__(self, index: int, config: ServiceConfig) -> None:
        if config.log is not None:
            logs.set_up(config.log)
        if config.threads_per_shard:
            optim.set_threads(config.threads_per_shard)
        self._process = ShardProcess(
            index,
            config.shards,
            host=node_address(config.shard_host),
            edge=ShardEdge(config.security.on_this_node(os.environ), config.shard_ports),
            node=ray.get_runtime_context().get_node_id(),
            device="cuda" if config.gpus_per_shard else "cpu",
            metrics_host=node_address(config.metrics_host) if config.metrics_host is not None else None,
        )

    @ray.method(concurrency_group="control")
    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the process."""
        return getattr(self._process, method)(*args, **options)


class ServiceController:
    """Ray's shell around a `Controller`, with ControlService beside it in the same process."""

    def __init__(self, config: ServiceConfig) -> None:
        if config.log is not None:
            logs.set_up(config.log)
        self._config = config
        self._calls = Calls()
        self._controller = Controller(
            RayPlacement(config, ShardActor), shards=config.shards, checkpoint_dir=config.checkpoint_dir
        )
        self._endpoint = open_control(
            self._controller,
            config.security.on_this_node(os.environ),
            config.host,
            config.port,
            self._calls,
            advertise=node_address(config.host),
        )

    def target(self) -> str:
        """host:port of ControlService."""
        return self._endpoint.address

    def credentials(self) -> Credentials:
        """Those of the service's own processes."""
        return self._config.security.credentials(self._config.secret)

    def calls(self) -> Calls:
        """Counts of ControlService's calls."""
        return self._calls

    def serve(self) -> None:
        """Say that the service is ready."""
        self._endpoint.serve()

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the controller."""
        return getattr(self._controller, method)(*args, **options)

    def drain(self, grace_s: float) -> None:
        """End ControlService's calls, then as `Controller.drain`."""
        self._endpoint.drain(grace_s)
        self._controller.drain(grace_s)

    def stop(self) -> None:
        """As `Controller.stop`."""
        self._endpoint.cut()
        self._controller.stop()


# Ray's stubs lack some of its options.
ControllerActor: Any = ray.remote(num_cpus=0, max_concurrency=128)(ServiceController)  # type: ignore[call-overload]
"""Ray's view of the controller."""
