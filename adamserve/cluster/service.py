"""A service on Ray, from the driver's side: started or found, used, and stopped.

    with Service.start(shards=4, checkpoint_dir=Path("checkpoints")) as service:
        service.create(config, parameters)
        with service.client("job") as client: ...

`adamserve serve`, training and the experiments all use this class. Every answer that a driver gets from the controller
is fetched in `Service._ask`.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, Self

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adamserve.cluster.actors import ControllerActor
from adamserve.cluster.config import CALL_TIMEOUT_S, SHARD_CPUS, ServiceConfig, listening
from adamserve.cluster.controller import Controller
from adamserve.cluster.placement import Answer, Given
from adamserve.cluster.pool import Pool
from adamserve.cluster.ray_calls import own_error
from adamserve.cluster.ray_runtime import NAMESPACE, check_address, connected, free_cpus, node_address
from adamserve.cluster.running import RunningService
from adamserve.edge.security import Security
from adamserve.edge.shard_edge import Ports
from adamserve.errors import Conflict, InvalidArgument, NotFound, Unavailable
from adamserve.observe.logs import LogConfig
from adamserve.observe.rpc_counts import Calls
from adamserve.values import Array

log = logging.getLogger("adamserve.service")


class Service(RunningService):
    """A service on Ray; `start` and `attach` make it.

    As a context manager it is drained and stopped at the end, unless it was only attached to; then Ray is left.
    """

    def __init__(self, controller: Any, leave: ExitStack, *, owned: bool, grace_s: float = 0.0) -> None:
        self._controller = controller
        self._leave = leave
        self._owned = owned
        self._grace_s = grace_s
        self.target = self._ask_shell("target")
        self.credentials = self._ask_shell("credentials")
        self.shards = len(self.processes())

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
        gpus_per_shard: float = 0.0,
        cpus_per_shard: float = SHARD_CPUS,
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
            gpus_per_shard, cpus_per_shard: what Ray reserves for each shard; GPUs above 0 put its buffers on CUDA.
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
            cpus_per_shard=cpus_per_shard,
            threads_per_shard=threads_per_shard,
            checkpoint_dir=checkpoint_dir.resolve() if checkpoint_dir is not None else None,
            port=port,
            shard_ports=shard_ports,
            metrics_host=metrics_host,
            log=log,
        )
        if address is not None:
            check_address(address)  # also where this process is connected already
        with ExitStack() as stack:
            if not ray.is_initialized():
                stack.enter_context(connected(address, num_cpus=num_cpus, num_gpus=num_gpus))
            controller = launch(_secured(config, security or Security(), host, insecure=insecure))
            return cls(controller, stack.pop_all(), owned=True, grace_s=grace_s)

    @classmethod
    def attach(cls, name: str = "adamserve", address: str = "auto") -> Self:
        """Use a service that runs already.

        Args:
            name: the service's.
            address: of its Ray cluster, as for `start`; ignored where this process is connected to one.

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
            return cls(controller, stack.pop_all(), owned=False)

    def serve(self) -> None:
        """As `RunningService.serve`."""
        self._ask_shell("serve")

    def calls(self) -> Calls:
        """As `RunningService.calls`."""
        answer: Calls = self._ask_shell("calls")
        return answer

    def workers(self, make: Callable[[], Any], *, gpus: float = 0.0) -> Pool:
        """As `RunningService.workers`: each is a process that Ray places."""
        return Pool(make, gpus=gpus)

    def free_cpus(self) -> int:
        """As `RunningService.free_cpus`: those that Ray has left to give."""
        return free_cpus()

    def drain(self, grace_s: float = 0.0) -> None:
        """As `RunningService.drain`."""
        # Each of its waits has a deadline; how many there are depends on the jobs.
        self._ask_shell("drain", grace_s, timeout_s=None)

    def stop(self) -> None:
        """End the service, and leave Ray."""
        with self._leave:
            if self._owned:
                self._owned = False
                self._ask_shell("stop")
                ray.kill(self._controller)

    def __exit__(self, *exc: object) -> None:
        try:
            if self._owned:
                self.drain(self._grace_s)
        finally:
            self.stop()

    def _ask(
        self,
        method: Callable[Concatenate[Controller, Given], Answer],
        *args: Given.args,
        **options: Given.kwargs,
    ) -> Answer:
        timeout_s = None if method is Controller.resume else CALL_TIMEOUT_S  # which takes as long as its size
        answer: Answer = ask(self._controller.call.remote(method.__name__, *args, **options), timeout_s)
        return answer

    def _sent(self, part: Mapping[str, Array]) -> Any:
        return ray.put(part)

    def _ask_shell(self, method: str, *args: Any, timeout_s: float | None = CALL_TIMEOUT_S) -> Any:
        """Call a method of the `ServiceController` around it."""
        return ask(getattr(self._controller, method).remote(*args), timeout_s)


def launch(config: ServiceConfig) -> Any:
    """Start a controller on the connected cluster, on this node; returns its handle once every shard is up.

    It is a named actor in `NAMESPACE`; it and its shards end with this process, or by `stop`.

    Raises:
        Conflict: a service of that name runs on this cluster.
        InvalidArgument: the cluster has fewer GPUs than the shards ask for.
        Unavailable: the shards did not start.
    """
    gpus = config.gpus_per_shard * config.shards
    present = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    if gpus > present:
        raise InvalidArgument(
            f"{config.shards} shards ask for {gpus:g} GPUs, the cluster has {present:g}",
            field="gpus_per_shard",
            fix="ask for less, or leave it out to run on CPUs",
        )
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    try:
        controller = ControllerActor.options(
            name=config.name, namespace=NAMESPACE, scheduling_strategy=here
        ).remote(config)
    except ValueError as error:
        raise Conflict(str(error).splitlines()[0], field="name", fix="choose another name") from None
    ask(controller.target.remote())
    return controller


def ask(ref: Any, timeout_s: float | None = CALL_TIMEOUT_S) -> Any:
    """An answer from the controller.

    Raises:
        Unavailable: the controller is dead or does not answer.
        AdamServeError: what it raised.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except RayTaskError as error:
        raise own_error(error) from None
    except GetTimeoutError:
        raise Unavailable(f"the controller has not answered for {timeout_s:.0f} s", fix="try again") from None
    except RayActorError as error:
        cause = getattr(error, "cause", None)  # where its constructor has failed
        if isinstance(cause, RayTaskError):
            raise own_error(cause) from None
        raise Unavailable(
            f"the service is not there: {str(error).strip().splitlines()[-1]}", fix="see the service's log"
        ) from None


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
