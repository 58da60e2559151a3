"""A service on Ray, from the driver's side: started or found, used, and stopped.

with Service.start(shards=4, checkpoint_dir=Path("checkpoints")) as service:
    service.create(config, parameters)
    with service.client("job") as client: ...
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adamserve.cluster.actors import ControllerActor, Made, RayHandle, WorkerActor, controller_of
from adamserve.cluster.config import SHARD_CPUS, ServiceConfig, listening
from adamserve.cluster.placement import Handle
from adamserve.cluster.ray_runtime import NAMESPACE, check_address, connected, node_address
from adamserve.cluster.running import RunningService
from adamserve.edge.security import Security
from adamserve.edge.shard_edge import Advertised, Ports
from adamserve.errors import Conflict, InvalidArgument, NotFound
from adamserve.observe.logs import LogConfig

log = logging.getLogger("adamserve.service")


class Service(RunningService):
    """A service on Ray; `start` and `attach` make it.

    As a context manager it is drained and stopped at the end, unless it was only attached to; then Ray is left.
    """

    def __init__(self, controller: Any, leave: ExitStack, *, owned: bool, grace_s: float = 0.0) -> None:
        super().__init__(RayHandle(controller))
        self._stopped = not owned
        self._grace_s = grace_s
        self._leave = leave.pop_all()  # from here on it is this service's to leave Ray

    @classmethod
    def start(
        cls,
        *,
        shards: int = 1,
        address: str | None = None,
        name: str = "adamserve",
        checkpoint_dir: Path | None = None,
        security: Security | None = None,
        insecure: bool = False,
        host: str | None = None,
        port: int = 0,
        shard_ports: Ports | None = None,
        advertise: Advertised | None = None,
        gpus_per_shard: float = 0.0,
        threads_per_shard: int = 0,
        metrics_host: str | None = None,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        grace_s: float = 0.0,
        log: LogConfig | None = None,
    ) -> Self:
        """Start a service; returns once every shard is up.

        Where Ray is the driver's own, or a cluster of one node, everything listens on loopback unless `host` says
        otherwise. On several nodes each shard listens on its node's own address. There, a call needs one of the tokens
        in `security`, or the secret that the service's own workers have, unless `insecure`.

        Args:
            shards: shard processes.
            address: of a running Ray cluster, as "host:port" or "auto"; None starts one. Ignored where this process is
                connected to one.
            name: of the service on its cluster.
            checkpoint_dir: where checkpoints go, one folder a job; None keeps none. On several nodes it is a folder
                that all of them share.
            security: TLS, tokens and limits. Without a certificate TLS is Ray's own, where RAY_USE_TLS is set.
            insecure: take calls without a token from anywhere.
            host, port: where ControlService listens, on this node. None: where the shards do; 0: any free port.
            shard_ports: which ports shards listen on; None for any free ones.
            advertise: where clients are told that the shards are; None for where they listen.
            gpus_per_shard: that Ray reserves for each (or a fraction); above 0 puts its buffers on CUDA.
            threads_per_shard: threads of a rule's kernel; 0 takes every core of the node.
            metrics_host: where each shard serves its metrics, on any free port: a loopback address, or any other for
                its node's own; None serves none.
            num_cpus, num_gpus: what a Ray of one's own may hand out.
            grace_s: how long running calls may take at the end.
            log: how the service's processes log; None leaves that to them.

        Raises:
            InvalidArgument: an argument is wrong, or the cluster has fewer GPUs than the shards ask for.
            Conflict: a service of that name runs on this cluster.
            Unavailable: there is no such cluster, or the shards did not start.
        """
        config = ServiceConfig(
            name=name,
            shards=shards,
            gpus_per_shard=gpus_per_shard,
            threads_per_shard=threads_per_shard,
            checkpoint_dir=checkpoint_dir.resolve() if checkpoint_dir is not None else None,
            port=port,
            shard_ports=shard_ports,
            advertise=advertise,
            metrics_host=metrics_host,
            log=log,
        )
        if address is not None:
            check_address(address)  # also where this process is connected already
        with ExitStack() as stack:
            if not ray.is_initialized():
                stack.enter_context(connected(address, num_cpus=num_cpus, num_gpus=num_gpus))
            controller = launch(_secured(config, security or Security(), host, insecure=insecure))
            return cls(controller, stack, owned=True, grace_s=grace_s)

    @classmethod
    def attach(cls, name: str = "adamserve", address: str = "auto") -> Self:
        """Use a service that runs already, on the Ray cluster at `address`, as for `start`.

        Raises:
            NotFound: the cluster has no such service.
            Unavailable: there is no such cluster.
        """
        with ExitStack() as stack:
            if not ray.is_initialized():
                stack.enter_context(connected(address))
            try:
                controller = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                raise NotFound(f"the cluster runs no service {name!r}", field="name") from None
            return cls(controller, stack, owned=False)

    def start_worker(self, make: Callable[[], Made], *, gpus: float = 0.0) -> Handle[Made]:
        """As `RunningService.start_worker`: Ray places it, spread over the nodes."""
        actor = WorkerActor.options(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")
        return RayHandle(actor.remote(make))

    def share(self, value: Any) -> Any:
        """As `RunningService.share`."""
        return ray.put(value)

    def free_cpus(self) -> int:
        """As `RunningService.free_cpus`: those that Ray has left to give."""
        return int(ray.available_resources().get("CPU", 1))  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """End the service, and leave Ray."""
        with self._leave:
            super().stop()

    def __exit__(self, *exc: object) -> None:
        try:
            if not self._stopped:
                self.drain(self._grace_s)
        finally:
            self.stop()


def launch(config: ServiceConfig) -> Any:
    """Start a controller on the connected cluster, on this node: an actor named in `NAMESPACE`.

    It and its shards end with this process, or by `stop`.
    """
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    most = int(there.get("CPU", 0) / SHARD_CPUS)
    for kind, each, field, fix in (
        ("GPU", config.gpus_per_shard, "gpus_per_shard", "ask for less, or leave it out to run on CPUs"),
        ("CPU", SHARD_CPUS, "shards", f"at most {most} shards, or more nodes"),
    ):
        wanted, present = each * config.shards, there.get(kind, 0)
        if wanted > present:
            problem = f"{config.shards} shards ask for {wanted:g} {kind}s, the cluster has {present:g}"
            raise InvalidArgument(problem, field=field, fix=fix)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": config.name, "namespace": NAMESPACE, "num_cpus": 0, "scheduling_strategy": here}
    try:
        return ControllerActor.options(**options).remote(partial(controller_of, config))
    except ValueError as error:
        raise Conflict(str(error).splitlines()[0], field="name", fix="choose another name") from None


def _secured(config: ServiceConfig, security: Security, host: str | None, *, insecure: bool) -> ServiceConfig:
    """With where its processes listen, TLS, and a secret of their own."""
    alone = sum(node["Alive"] for node in ray.nodes()) == 1  # type: ignore[no-untyped-call]
    where = listening(host, alone=alone, insecure=insecure)
    log.debug("%s", where.reason)
    if where.shard_host is None:
        security = security.as_ray(os.environ)
    secret = secrets.token_urlsafe()
    return replace(
        config,
        host=where.host or node_address(None),
        shard_host=where.shard_host,
        secret=secret,
        security=replace(security, tokens=security.tokens.beside(secret, required=where.closed)),
    )
