"""Processes as Ray's actors. No decisions here: what they hold knows nothing of Ray."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from adamserve import optim
from adamserve.cluster.config import CALL_TIMEOUT_S, SHARD_CPUS, ServiceConfig
from adamserve.cluster.controller import Controller
from adamserve.cluster.placement import Handle, Placement, ProcessGone
from adamserve.cluster.process import ShardProcess
from adamserve.cluster.ray_runtime import node_address
from adamserve.edge.shard_edge import ShardEdge
from adamserve.errors import AdamServeError, Unavailable
from adamserve.observe import logs

Made = TypeVar("Made")


class Shell:
    """Ray's view of one object."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._made = make()

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the object."""
        return getattr(self._made, method)(*args, **options)


def _actor(name: str, threads: int) -> Any:
    """A class of actors, whose name their processes bear; each answers so many calls at once."""
    return ray.remote(max_concurrency=threads)(type(name, (Shell,), {}))  # type: ignore[call-overload] # not in the stubs


ShardActor, WorkerActor = _actor("ShardActor", 8), _actor("WorkerActor", 4)
ControllerActor = _actor("ControllerActor", 128)


class RayHandle(Handle[Made]):
    """An actor's `Handle`; an argument may be Ray's reference to what the method takes."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def send(self, method: str, *args: Any, **options: Any) -> Future[Any]:
        """As `Handle.send`."""
        answer: Future[Any] = Future()

        def done(future: Future[Any]) -> None:
            error = future.exception()
            if error is None:
                answer.set_result(future.result())
            else:
                answer.set_exception(_own(error))

        self._actor.call.remote(method, *args, **options).future().add_done_callback(done)
        return answer

    def kill(self) -> None:
        """End the process at once."""
        ray.kill(self._actor)


def _own(error: BaseException) -> BaseException:
    """Our own error in place of Ray's; the object's constructor may have raised it, or the method."""
    task = error.args[0] if isinstance(error, RayActorError) and error.args else error
    if isinstance(task, RayTaskError) and isinstance(task.cause, AdamServeError):
        return task.cause
    first_line = str(error).split("\n")[0]
    if isinstance(error, ActorUnavailableError):
        return Unavailable(f"a process cannot be reached: {first_line}")
    return ProcessGone(first_line) if isinstance(error, RayActorError) else error


def controller_of(config: ServiceConfig) -> Controller:
    """A service's controller, in the process that is to hold it."""
    if config.log is not None:
        logs.set_up(config.log)
    return Controller(
        place_shards(config),
        shards=config.shards,
        checkpoint_dir=config.checkpoint_dir,
        security=config.security.on_this_node(os.environ),
        credentials=config.security.credentials(config.secret),
        host=config.host,
        port=config.port,
        advertise=node_address(config.host),
        shards_at=config.advertise,
    )


def place_shards(config: ServiceConfig) -> Placement:
    """A way to start shards' actors.

    What they need is reserved from the start, in a placement group that lives as long as this process, so that nobody
    else's tasks can take the place of a shard that is being restarted.

    Raises:
        Unavailable: the cluster has no room for the shards.
    """
    bundle = {"CPU": SHARD_CPUS}
    if config.gpus_per_shard:
        bundle["GPU"] = config.gpus_per_shard
    group = placement_group([bundle] * config.shards, strategy="SPREAD")
    if not group.wait(CALL_TIMEOUT_S):
        remove_placement_group(group)
        raise Unavailable(
            f"the cluster has had no room for {config.shards} shards of {bundle} in {CALL_TIMEOUT_S:.0f} s",
            field="shards",
            fix="ask for fewer, or add nodes",
        )
    numbers = itertools.count(1)  # no name comes twice

    def start(index: int) -> Handle[ShardProcess]:
        actor = ShardActor.options(
            name=f"{config.name}.shard-{index}.{next(numbers)}",
            num_cpus=SHARD_CPUS,
            num_gpus=config.gpus_per_shard,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            max_restarts=0,
        )
        return RayHandle(actor.remote(partial(_shard_of, config, index)))

    return start


def _shard_of(config: ServiceConfig, index: int) -> ShardProcess:
    """A service's shard, in the process that is to hold it."""
    if config.log is not None:
        logs.set_up(config.log)
    if config.threads_per_shard:
        optim.set_threads(config.threads_per_shard)
    return ShardProcess(
        index,
        config.shards,
        host=node_address(config.shard_host),
        edge=ShardEdge(config.security.on_this_node(os.environ), config.shard_ports),
        node=ray.get_runtime_context().get_node_id(),
        device="cuda" if config.gpus_per_shard else "cpu",
        metrics_host=node_address(config.metrics_host) if config.metrics_host is not None else None,
    )
